/* gguf_import_copy.c - moves tensors from a GGUF file to safetensors, some hundred KiB at a time.
 *
 * A tensor is a sequence of runs: all of it, or row by row where heads are put back in order. A run
 * is read in pieces of whole blocks, which are either written as they are or decoded and rounded to
 * the type asked for. Every value and scale is checked to be finite on its way. */
#include "common/model/gguf_import_impl.h"

#include "common/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_ELEMENTS = 1 << 17 }; /* a multiple of every block */

typedef struct {
    mr_gguf *file;
    mr_writer *writer;
    const mr_import_options *options;
    mr_import_report *report;
    uint8_t *raw;         /* of a piece, as read */
    float *floats;        /* decoded */
    uint16_t *halves;     /* rounded */
    uint64_t done, total; /* elements */
    bool rounded;         /* the tensor at hand lost bits */
} copier;

static mr_status not_finite(const copier *c, const gguf_output *t, mr_err *err) {
    return mr_fail(err, MR_ERR_RANGE, "%s: tensor %s holds a value that is not finite",
                   mr_gguf_name(c->file), t->from->name);
}

/* Of what is written as it was read: block scales, or plain numbers. */
static mr_status check_raw(const copier *c, const gguf_output *t, uint64_t blocks, mr_err *err) {
    const mr_block_format *format = t->from->format;
    float value;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint8_t *block = c->raw + i * format->bytes;
        if (format->elements == 1)
            format->decode(&value, block);
        else
            value = mr_block_half(block); /* Q8_0 and Q4_0 begin with their scale */
        if (!isfinite(value)) return not_finite(c, t, err);
    }
    return MR_OK;
}

/* Nothing has to be decoded. */
static bool is_raw(const gguf_output *t) {
    const uint32_t type = t->from->format->type;
    return t->dtype == MR_DTYPE_U8 || (t->dtype == MR_DTYPE_F32 && type == MR_BLOCK_F32) ||
           (t->dtype == MR_DTYPE_F16 && type == MR_BLOCK_F16) ||
           (t->dtype == MR_DTYPE_BF16 && type == MR_BLOCK_BF16);
}

static void note_change(copier *c, float before, float after) {
    if (!(before < after) && !(before > after)) return;
    const double change = fabs((double)after - (double)before) / fabs((double)before);
    c->rounded = true;
    if (change > c->report->rounded_most) c->report->rounded_most = change;
}

static mr_status round_piece(copier *c, const gguf_output *t, uint64_t count, mr_err *err) {
    const bool f16 = t->dtype == MR_DTYPE_F16;
    for (uint64_t i = 0; i < count; i++) {
        const uint16_t half = f16 ? mr_f32_to_f16(c->floats[i]) : mr_f32_to_bf16(c->floats[i]);
        const float after = f16 ? mr_f16_to_f32(half) : mr_bf16_to_f32(half);
        if (!isfinite(after))
            return mr_fail(err, MR_ERR_RANGE,
                           "%s: tensor %s holds %g, too large for %s; choose "
                           "--dtype f32",
                           mr_gguf_name(c->file), t->from->name, (double)c->floats[i],
                           f16 ? "f16" : "bf16");
        note_change(c, c->floats[i], after);
        c->halves[i] = half;
    }
    return MR_OK;
}

/* count elements, whole blocks, from element `from` of the GGUF tensor to element `to`. */
static mr_status copy_piece(copier *c, const gguf_output *t, uint64_t from, uint64_t to,
                            uint64_t count, mr_err *err) {
    const mr_block_format *format = t->from->format;
    const uint64_t blocks = count / format->elements;
    const size_t bytes = (size_t)(blocks * format->bytes);
    mr_status status =
        mr_gguf_read(c->file, t->from, from / format->elements * format->bytes, c->raw, bytes, err);
    if (status != MR_OK) return status;
    if (is_raw(t)) {
        status = check_raw(c, t, blocks, err);
        if (status != MR_OK) return status;
        return mr_writer_put(c->writer, t->number, to / format->elements * format->bytes, c->raw,
                             bytes, err);
    }
    mr_block_decode(c->floats, format, c->raw, blocks);
    for (uint64_t i = 0; i < count; i++)
        if (!isfinite(c->floats[i])) return not_finite(c, t, err);
    if (t->dtype == MR_DTYPE_F32)
        return mr_writer_put(c->writer, t->number, to * 4, c->floats, (size_t)count * 4, err);
    status = round_piece(c, t, count, err);
    return status != MR_OK
               ? status
               : mr_writer_put(c->writer, t->number, to * 2, c->halves, (size_t)count * 2, err);
}

static mr_status copy_run(copier *c, const gguf_output *t, uint64_t from, uint64_t to,
                          uint64_t count, mr_err *err) {
    while (count > 0) {
        const uint64_t piece = count < PIECE_ELEMENTS ? count : PIECE_ELEMENTS;
        if (c->options->interrupted && *c->options->interrupted)
            return mr_fail(err, MR_ERR_CANCELLED, "interrupted");
        const mr_status status = copy_piece(c, t, from, to, piece, err);
        if (status != MR_OK) return status;
        from += piece;
        to += piece;
        count -= piece;
        c->done += piece;
        if (c->options->progress)
            c->options->progress(c->options->context, t->name, (double)c->done / (double)c->total);
    }
    return MR_OK;
}

static mr_status copy_tensor(copier *c, const gguf_output *t, mr_err *err) {
    if (t->head_rows == 0) return copy_run(c, t, t->first, 0, t->rows * t->columns, err);
    for (uint64_t row = 0; row < t->rows; row++) {
        /* row j * half + i of a head was written as its row 2 i + j */
        const uint64_t head = row / t->head_rows, at = row % t->head_rows, half = t->head_rows / 2;
        const uint64_t source = head * t->head_rows + 2 * (at % half) + at / half;
        const mr_status status =
            copy_run(c, t, t->first + source * t->columns, row * t->columns, t->columns, err);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

static void note_rounded(mr_import_report *report, const char *type) {
    const size_t used = strlen(report->rounded_types);
    report->rounded_tensors++;
    if (strstr(report->rounded_types, type)) return;
    snprintf(report->rounded_types + used, sizeof(report->rounded_types) - used, "%s%s",
             used ? " " : "", type);
}

static mr_status copy_all(copier *c, const gguf_plan *plan, mr_err *err) {
    for (uint32_t i = 0; i < plan->count; i++) {
        const gguf_output *t = &plan->items[i];
        c->rounded = false;
        const mr_status status = copy_tensor(c, t, err);
        if (status != MR_OK) return status;
        if (c->rounded) note_rounded(c->report, t->from->format->name);
        if (t->dtype == MR_DTYPE_U8) c->report->block_tensors++;
    }
    return MR_OK;
}

static mr_status declare_all(copier *c, gguf_plan *plan, mr_err *err) {
    mr_status status = MR_OK;
    for (uint32_t i = 0; i < plan->count && status == MR_OK; i++) {
        gguf_output *t = &plan->items[i];
        const mr_block_format *format = t->from->format;
        uint64_t shape[2] = {t->shape[0], t->shape[1]};
        if (t->dtype == MR_DTYPE_U8) shape[1] = t->columns / format->elements * format->bytes;
        status = mr_writer_declare(c->writer, &t->number, t->name, t->dtype, t->dims, shape, err);
        c->total += t->rows * t->columns;
    }
    c->report->f32_bytes = 4 * c->total;
    c->report->tensors = plan->count;
    return status;
}

mr_status gguf_copy_tensors(gguf_plan *plan, mr_gguf *file, const char *directory,
                            const mr_import_options *options, mr_import_report *report,
                            mr_err *err) {
    copier c = {.file = file,
                .writer = mr_writer_new(),
                .options = options,
                .report = report,
                .raw = mr_alloc((size_t)PIECE_ELEMENTS * 4),
                .floats = mr_alloc((size_t)PIECE_ELEMENTS * 4),
                .halves = mr_alloc((size_t)PIECE_ELEMENTS * 2)};
    mr_status status = declare_all(&c, plan, err);
    if (status == MR_OK)
        status = mr_writer_begin_directory(c.writer, directory, options->file_bytes_max, err);
    if (status == MR_OK) status = copy_all(&c, plan, err);
    if (status == MR_OK) status = mr_writer_finish(c.writer, err);
    if (status == MR_OK) {
        report->files = mr_writer_file_count(c.writer);
        report->bytes = mr_writer_data_bytes(c.writer);
    }
    mr_writer_free(c.writer);
    free(c.halves);
    free(c.floats);
    free(c.raw);
    return status;
}
