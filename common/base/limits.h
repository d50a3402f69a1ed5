/* limits.h - every maximum of the system, in one place, and how they relate.
 *
 * Beyond a maximum there is always one clear error (MR_ERR_LIMIT or a 4xx), never a silent cut. */
#ifndef MR_BASE_LIMITS_H
#define MR_BASE_LIMITS_H

#define MR_KIB 1024ull
#define MR_MIB (1024ull * MR_KIB)
#define MR_GIB (1024ull * MR_MIB)

enum {
    /* model files */
    MR_MAX_CONFIG_BYTES = 16 << 20,              /* config.json, tokenizer_config.json */
    MR_MAX_MANIFEST_BYTES = 256 << 20,           /* 8 bytes a MiB of the model */
    MR_MAX_TOKENIZER_BYTES = 64 << 20,           /* tokenizer.json */
    MR_MAX_SAFETENSORS_HEADER_BYTES = 100 << 20, /* as the official reader */
    MR_MAX_TENSORS = 1 << 20,
    MR_MAX_TENSOR_DIMS = 8,
    MR_MAX_TENSOR_NAME_BYTES = 1024,
    MR_MAX_MODEL_FILES = 4096,
    MR_MAX_JSON_DEPTH = 64,
    MR_MAX_GGUF_KEYS = 1 << 16,
    MR_MAX_GGUF_KEY_BYTES = 1024,
    MR_MAX_GGUF_METADATA_BYTES = 256 << 20, /* keys, values and tensor entries of a GGUF file */
    MR_MAX_GGUF_ALIGNMENT = 1 << 20,
    MR_MAX_GGUF_TENSOR_DIMS = 4,

    /* model shapes */
    MR_MAX_LAYERS = 1024,
    MR_MAX_VOCAB = 1 << 22,
    MR_MAX_D_MODEL = 1 << 17,
    MR_MAX_HEADS = 1024,
    MR_MAX_CONTEXT = 1 << 22,
    MR_MAX_MEM_HEADS = 64,
    MR_MAX_MEM_KNN = 1024,
    MR_MAX_MEM_ENTRIES = 8192, /* heads * knn of one token and layer */
    MR_MAX_TUCKER_RANK = 16,
    MR_MAX_CORES = 16,
    MR_MAX_SLOTS = 256, /* expansion slots; a slot travels as one byte */
    MR_MAX_EXPERTS = 4096,
    MR_MAX_THREADS = 1024,

    /* cluster */
    MR_MAX_MEMSHARDS = 1024,
    MR_MAX_CELLS = 65536,         /* row groups x width slices */
    MR_MAX_FRAME_BYTES = 1 << 20, /* payload of one data-plane frame */
    MR_MAX_FRAMES_OUTSTANDING = 4096,
    MR_MAX_LINK_BACKLOG_BYTES = 64 << 20,
    MR_MAX_LINKS_PER_SERVER = 1024,
    MR_MAX_STEP_TOKENS = 4096,
    MR_MAX_STEP_SEQUENCES = 512,
    MR_MAX_DRAFT_TOKENS = 32, /* guessed of one sequence in a step */
    MR_KV_BLOCK_TOKENS = 16,
    MR_MAX_MEMBERS = 4096,            /* processes of a cluster */
    MR_MAX_REPLICAS = 16,             /* of a cell */
    MR_MAX_STAGES = 64,               /* of a pipeline */
    MR_MAX_STAGED_BYTES = 512 << 20,  /* hidden states that wait at a stage for their step */
    MR_MAX_GROUPS = 256,              /* worker groups of a cluster */
    MR_MAX_MODELS = 64,               /* in one cluster, all versions */
    MR_MAX_RECORD_BYTES = 1536 << 10, /* of one etcd value, as etcd itself */
    MR_MAX_ADDRESS_BYTES = 256,

    /* serving */
    MR_MAX_HTTP_BODY_BYTES = 8 << 20,
    MR_MAX_HTTP_HEADER_BYTES = 16 << 10,
    MR_MAX_HTTP_CONNECTIONS = 4096,
    MR_MAX_QUEUED_REQUESTS = 1024,
    MR_MAX_CHOICES = 128, /* n */
    MR_MAX_PROMPTS = 256, /* prompts of one completion request */
    MR_MAX_STOP_STRINGS = 16,
    MR_MAX_STOP_BYTES = 1024,
    MR_MAX_LOGPROBS = 20,
    MR_MAX_REQUEST_SEQUENCES = 256,          /* prompts x n of one request */
    MR_MAX_MESSAGES = 4096,                  /* of one chat request */
    MR_MAX_ROLE_BYTES = 64,
    MR_MAX_QUEUED_TOKENS = 16 << 20,         /* prompt tokens waiting, all requests together */
    MR_MAX_REPLY_BYTES = 64 << 20,           /* of a JSON reply that is not streamed */
    MR_MAX_LOGITS_BYTES = 512 << 20,         /* of one logits reply */
    MR_MAX_STREAM_BACKLOG_BYTES = 256 << 10, /* unsent bytes of one stream: beyond, it is cut */
    MR_MAX_HTTP_HEADERS = 128,
    MR_MAX_HTTP_BUFFERED_BYTES = 512 << 20, /* request bodies being received, all together */

    /* tokenizers */
    MR_MAX_TEXT_BYTES = 1 << 30, /* of one text to encode */
    MR_MAX_TOKEN_BYTES = 8192,   /* text of one token */
    MR_MAX_ADDED_TOKENS = 1 << 16,
    MR_MAX_ADDED_TOKEN_BYTES = 512,
    MR_MAX_ADDED_TRIE_NODES = 1 << 22, /* bytes of all added tokens, shared prefixes once */
    MR_MAX_PRE_TOKENIZERS = 16,
    MR_MAX_NORMALIZERS = 16,
    MR_MAX_DECODERS = 16,
    MR_MAX_REPLACEMENT_BYTES = 1024,    /* what a normalizer or decoder puts in a place */
    MR_MAX_NORMALIZED_BYTES = 64 << 10, /* what any text may become under the normalizers, and */
    MR_MAX_NORMALIZED_GROWTH = 64,      /* for each of its bytes; MR_MAX_TEXT_BYTES at most */
    MR_MAX_REGEX_BYTES = 16 << 10,
    MR_MAX_TEMPLATE_TOKENS = 16,  /* special tokens the post-processor adds */
    MR_MAX_REGEX_STEPS = 1 << 20, /* backtracking steps of one match, and 32 per byte */

    /* chat templates; beyond each the render ends with MR_ERR_LIMIT */
    MR_MAX_JINJA_SOURCE_BYTES = 1 << 20,
    MR_MAX_JINJA_NESTING = 200,           /* of expressions and blocks in the source */
    MR_MAX_JINJA_DEPTH = 800,             /* of the walk over them, with macros that call macros */
    MR_MAX_JINJA_STEPS = 1 << 23,         /* nodes evaluated, and some for bytes worked on */
    MR_MAX_JINJA_RANGE = 100000,          /* items of one range(), as the sandbox of jinja2 */
    MR_MAX_JINJA_BYTES = 256 << 20,       /* memory of one render, or of a parsed template */
    MR_MAX_JINJA_OUTPUT_BYTES = 64 << 20, /* of one rendered string */
};

_Static_assert(MR_MAX_CELLS >= MR_MAX_MEMSHARDS, "every shard can hold a cell");
_Static_assert(MR_MAX_SLOTS <= 256, "slots travel as one byte");

#endif
