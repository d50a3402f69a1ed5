/* manifest_codes.c - finite or not, of numbers that are stored as something else than F32 and BF16.
 * Codes are finite where their scales are, but for fp8's two NaNs. */
#include "common/model/manifest_impl.h"

#include <math.h>
#include <string.h>

static mr_status refuse(const mr_model *model, const mr_tensor *t, uint64_t row, mr_err *err) {
    return mr_fail(err, MR_ERR_FORMAT,
                   "%s: tensor %.200s holds a number in row %llu that is not "
                   "finite",
                   mr_model_file(model, t), t->name, (unsigned long long)row);
}

static bool has_nan(const uint8_t *codes, uint64_t count) {
    uint32_t found = 0;
    for (uint64_t i = 0; i < count; i++) found |= (codes[i] & 0x7fu) == 0x7f;
    return found != 0;
}

static bool halves_are_finite(const uint8_t *data, uint64_t count) {
    uint32_t found = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, data + 2 * i, sizeof(half));
        found |= (half & 0x7c00u) == 0x7c00u;
    }
    return found == 0;
}

/* A row of blocks: scales, and the codes of fp8. */
static bool row_is_finite(const uint8_t *row, mr_storage format, uint64_t columns) {
    const uint64_t block = format.block == MR_WHOLE_ROW ? columns : format.block;
    const uint32_t scale_bytes = mr_storage_scale_bytes(format);
    for (uint64_t at = 0; at < columns; at += block) {
        const uint64_t count = columns - at < block ? columns - at : block;
        float scale;
        if (scale_bytes == 2) {
            if (!halves_are_finite(row, 1)) return false;
        } else {
            memcpy(&scale, row, sizeof(scale));
            if (!isfinite(scale)) return false;
        }
        if (format.element == MR_F8 && has_nan(row + scale_bytes, count)) return false;
        row += scale_bytes + mr_code_bytes(format.element, count);
    }
    return true;
}

mr_status mr_check_codes(const mr_model *model, const mr_tensor *t, const uint8_t *data,
                         uint64_t first, uint64_t rows, mr_err *err) {
    if (rows == 0 || t->bytes == 0) return MR_OK;
    const uint64_t all = t->dims ? t->bytes / t->shape[t->dims - 1] / mr_dtype_bytes(t->dtype) : 1;
    const uint64_t row_bytes = t->bytes / all;
    for (uint64_t r = 0; r < rows; r++, data += row_bytes) {
        bool is_fine = true;
        if (t->dtype == MR_DTYPE_F16)
            is_fine = halves_are_finite(data, row_bytes / 2);
        else if (t->dtype == MR_DTYPE_F8_E4M3)
            is_fine = !has_nan(data, row_bytes);
        else if (t->dtype == MR_DTYPE_U8 && t->columns > 0)
            is_fine = row_is_finite(data, t->storage, t->columns);
        else if (t->dtype == MR_DTYPE_U8 && t->storage.element == MR_F8) /* panels */
            is_fine = !has_nan(data, row_bytes);
        if (!is_fine) return refuse(model, t, first + r, err);
    }
    return MR_OK;
}
