/* store_source.c - see store_source.h. */
#include "memshard/store_source.h"

#include "common/base/mem.h"
#include "memshard/store_peer.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    mr_source *source;
    mr_model_tables *tables;
    mr_peer_tables *peers; /* NULL: none */
} opened;

static void close_opened(mr_table_source *source) {
    opened *o = source->own;
    if (!o) return;
    mr_peer_tables_close(o->peers);
    mr_model_tables_close(o->tables);
    mr_source_close(o->source);
    free(o);
    source->own = NULL;
}

/* "peer:A,B;WHERE" into its two halves; both owned. */
static mr_status cut_peers(char **addresses, char **where, const char *text, mr_err *err) {
    static const char peer[] = "peer:";
    *addresses = *where = NULL;
    if (strncmp(text, peer, sizeof(peer) - 1) != 0) {
        *where = mr_strdup(text);
        return MR_OK;
    }
    text += sizeof(peer) - 1;
    const char *semicolon = strchr(text, ';');
    if (!semicolon || semicolon[1] == '\0' || semicolon == text)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "peer:%.200s: a peer gives rows only; write peer:ADDRESS,..;WHERE with a "
                       "directory or an address of the model's files",
                       text);
    *addresses = mr_strndup(text, (size_t)(semicolon - text));
    *where = mr_strdup(semicolon + 1);
    return MR_OK;
}

mr_status mr_store_opener_open(void *context, mr_table_source *out, const mr_load_order *order,
                               mr_progress progress, void *progress_context, mr_err *err) {
    const mr_store_opener *opener = context;
    char *addresses, *where;
    *out = (mr_table_source){0};
    mr_status status = cut_peers(&addresses, &where, order->source, err);
    if (status != MR_OK) return status;
    mr_source_options options = opener->source;
    options.digest = order->digest;
    options.progress = progress;
    options.progress_context = progress_context;
    opened *o = mr_alloc(sizeof(*o));
    *out = (mr_table_source){.close = close_opened, .own = o};
    status = mr_source_open(&o->source, where, &options, err);
    if (status == MR_OK && mr_model_table_count(mr_source_model(o->source)) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "%s has no memory layers: a memshard would hold nothing", where);
    if (status == MR_OK)
        status = mr_model_tables_open(&o->tables, mr_source_model(o->source),
                                      mr_source_manifest(o->source), err);
    if (status == MR_OK && addresses) {
        const mr_peer_options peers = {.addresses = addresses,
                                       .digest = mr_source_manifest(o->source)->digest,
                                       .timeout_ms = opener->peer_timeout_ms,
                                       .is_cancelled = opener->source.is_cancelled};
        status = mr_peer_tables_open(&o->peers, mr_model_tables_source(o->tables), &peers, err);
    }
    free(addresses);
    free(where);
    if (status != MR_OK) {
        close_opened(out);
        return status;
    }
    out->tables = o->peers ? mr_peer_tables_source(o->peers) : mr_model_tables_source(o->tables);
    out->digest = mr_source_manifest(o->source)->digest;
    out->model = mr_source_model(o->source);
    return MR_OK;
}
