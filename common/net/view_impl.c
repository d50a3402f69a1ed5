/* view_impl.c - see view_impl.h. */
#include "common/net/view_impl.h"

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

/* --- pieces ----------------------------------------------------------------------------------- */

static bool is_id_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

mr_status mr_id_check(const char *id, const char *what, mr_err *err) {
    const size_t bytes = strnlen(id, MR_ID_BYTES_MAX + 1);
    if (bytes == 0 || bytes > MR_ID_BYTES_MAX)
        return mr_fail(err, MR_ERR_FORMAT, "%s '%.80s' must have 1 to %d characters", what, id,
                       MR_ID_BYTES_MAX);
    for (size_t i = 0; i < bytes; i++)
        if (!is_id_char(id[i]))
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s '%.80s' holds characters other than letters, digits, '.', '_', '-'",
                           what, id);
    if (strcmp(id, ".") == 0 || strcmp(id, "..") == 0)
        return mr_fail(err, MR_ERR_FORMAT, "%s '%s' is no name", what, id);
    return MR_OK;
}

mr_status mr_label_check(const char *label, const char *what, mr_err *err) {
    const size_t bytes = strnlen(label, MR_LABEL_BYTES_MAX + 1);
    if (bytes > MR_LABEL_BYTES_MAX)
        return mr_fail(err, MR_ERR_FORMAT, "%s '%.40s...' has more than %d characters", what, label,
                       MR_LABEL_BYTES_MAX);
    for (size_t i = 0; i < bytes; i++)
        if (!is_id_char(label[i]) && !strchr(":/@+=,", label[i]))
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s '%.130s' holds characters other than letters, digits and ._-:/@+=,",
                           what, label);
    return MR_OK;
}

/* What an IPv4 address in host byte order must not be, or NULL. */
static const char *why_not_ipv4(uint32_t a) {
    if (a >> 24 == 0) return "any host";
    if (a >> 16 == 0xa9fe) return "a link-local host";
    if (a >> 28 >= 0xe) return "multicast, broadcast or reserved";
    return NULL;
}

static uint32_t read_u32_big_endian(const uint8_t *from) {
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static const char *why_not_ipv6(const struct in6_addr *a) {
    static const uint8_t metadata[16] = {0xfd, 0x00, 0x0e, 0xc2, [14] = 0x02, 0x54};
    if (IN6_IS_ADDR_UNSPECIFIED(a)) return "any host";
    if (IN6_IS_ADDR_LINKLOCAL(a)) return "a link-local host";
    if (IN6_IS_ADDR_MULTICAST(a)) return "multicast, broadcast or reserved";
    if (memcmp(a, metadata, sizeof(metadata)) == 0) return "a metadata service";
    if (IN6_IS_ADDR_V4MAPPED(a)) return why_not_ipv4(read_u32_big_endian(a->s6_addr + 12));
    return NULL;
}

/* Digits are judged as the resolver reads them: "0", "0xa9fea9fe" and "169.254.43518" are addresses
 * too. */
static mr_status check_host(const char *host, const char *address, mr_err *err) {
    struct in_addr four;
    struct in6_addr six;
    const char *why = NULL;
    if (strchr(host, ':')) {
        char plain[MR_MAX_ADDRESS_BYTES];
        const size_t bytes = strcspn(host, "%");
        memcpy(plain, host, bytes);
        plain[bytes] = '\0';
        if (inet_pton(AF_INET6, plain, &six) != 1)
            return mr_fail(err, MR_ERR_FORMAT, "address '%s' is no IPv6 address", address);
        why = why_not_ipv6(&six);
    } else if (inet_aton(host, &four))
        why = why_not_ipv4(ntohl(four.s_addr));
    else
        for (const char *c = host; *c; c++)
            if (!is_id_char(*c))
                return mr_fail(err, MR_ERR_FORMAT, "address '%s': that is no host name", address);
    if (why)
        return mr_fail(err, MR_ERR_FORMAT, "address '%s' is %s; nobody can be reached there",
                       address, why);
    return MR_OK;
}

mr_status mr_peer_address_check(const char *address, bool may_be_unix, mr_err *err) {
    const size_t bytes = strnlen(address, MR_MAX_ADDRESS_BYTES);
    if (bytes >= MR_MAX_ADDRESS_BYTES)
        return mr_fail(err, MR_ERR_FORMAT, "address '%.60s...' has more than %d bytes", address,
                       MR_MAX_ADDRESS_BYTES - 1);
    for (size_t i = 0; i < bytes; i++)
        if (address[i] <= 0x20 || address[i] >= 0x7f)
            return mr_fail(err, MR_ERR_FORMAT, "address '%s' holds blanks or control characters",
                           address);
    mr_status status = mr_address_check(address, err);
    if (status != MR_OK) return status;
    if (strncmp(address, "unix:", 5) == 0)
        return may_be_unix
                   ? MR_OK
                   : mr_fail(err, MR_ERR_FORMAT, "address '%s': host:port is wanted here", address);
    const char *colon = strrchr(address, ':'); /* there is one: it was checked */
    if (strtol(colon + 1, NULL, 10) == 0)
        return mr_fail(err, MR_ERR_FORMAT, "address '%s' has port 0", address);
    char host[MR_MAX_ADDRESS_BYTES] = {0};
    const size_t bracket = address[0] == '[';
    memcpy(host, address + bracket, (size_t)(colon - address) - 2 * bracket);
    return check_host(host, address, err);
}

mr_status mr_grid_check(uint64_t rows, uint64_t columns, mr_err *err) {
    if (rows < 1 || columns < 1 || rows > MR_MAX_CELLS || columns > MR_MAX_CELLS ||
        rows * columns > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_RANGE, "a grid of %llux%llu; it has 1 to %d cells",
                       (unsigned long long)rows, (unsigned long long)columns, MR_MAX_CELLS);
    return MR_OK;
}

/* --- reading ---------------------------------------------------------------------------------- */

mr_status mr_record_keys(const mr_record_text *t, const json_t *object, const char *const *known,
                         mr_err *err) {
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return mr_fail(err, MR_ERR_FORMAT, "%s where an object is expected",
                       mr_json_type_name(object));
    if (t->is_lenient) return MR_OK;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        uint32_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0) i++;
        if (!known[i] && !(object == t->root && strcmp(key, "schema") == 0))
            return mr_fail(err, MR_ERR_FORMAT, "unknown key '%.60s'", key);
    }
    return MR_OK;
}

mr_status mr_record_open(mr_record_text *out, const char *text, size_t bytes,
                         const char *const *known, const char *what, mr_err *err) {
    uint32_t schema = 0;
    *out = (mr_record_text){0};
    if (bytes > MR_MAX_RECORD_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s has %zu bytes; at most %d", what, bytes,
                       MR_MAX_RECORD_BYTES);
    mr_status status = mr_json_parse(&out->root, text, bytes, what, err);
    if (status != MR_OK) return status;
    if (!json_is_object(out->root))
        status = mr_fail(err, MR_ERR_FORMAT, "it is %s, expected an object",
                         mr_json_type_name(out->root));
    else
        status = mr_need_u32(&schema, out->root, "schema", 1, UINT32_MAX, err);
    out->is_lenient = schema > MR_RECORD_SCHEMA;
    if (status == MR_OK) status = mr_record_keys(out, out->root, known, err);
    if (status == MR_OK) return MR_OK;
    json_decref(out->root);
    out->root = NULL;
    return mr_fail_prefix(err, status, "%s", what);
}

static mr_status need(const json_t *object, const char *key, mr_err *err) {
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_null(value)) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "'%s' is missing", key);
}

mr_status mr_need_u64(uint64_t *out, const json_t *object, const char *key, uint64_t min,
                      uint64_t max, mr_err *err) {
    int64_t number = 0;
    mr_status status = need(object, key, err);
    if (max > INT64_MAX) max = INT64_MAX;
    if (status == MR_OK)
        status = mr_json_int(&number, object, key, (int64_t)min, (int64_t)max, err);
    if (status == MR_OK) *out = (uint64_t)number;
    return status;
}

mr_status mr_need_u32(uint32_t *out, const json_t *object, const char *key, uint32_t min,
                      uint32_t max, mr_err *err) {
    uint64_t number = 0;
    const mr_status status = mr_need_u64(&number, object, key, min, max, err);
    if (status == MR_OK) *out = (uint32_t)number;
    return status;
}

mr_status mr_need_digest(mr_digest *out, const json_t *object, const char *key, mr_err *err) {
    const char *text = NULL;
    const mr_status status = mr_json_string(&text, object, key, err);
    if (status != MR_OK) return status;
    if (!text || mr_digest_parse(out, text) != 0)
        return mr_fail(err, MR_ERR_FORMAT, "'%s' must be 64 hexadecimal digits", key);
    return MR_OK;
}

mr_status mr_need_array(const json_t **out, const json_t *object, const char *key, size_t min,
                        size_t max, mr_err *err) {
    const json_t *list = json_object_get(object, key);
    *out = NULL;
    if (!list && min == 0) return MR_OK;
    if (!json_is_array(list))
        return mr_fail(err, MR_ERR_FORMAT, "'%s' is %s, expected an array", key,
                       mr_json_type_name(list));
    const size_t count = json_array_size(list);
    if (count < min || count > max)
        return mr_fail(err, MR_ERR_LIMIT, "'%s' has %zu items; it has %zu to %zu", key, count, min,
                       max);
    *out = list;
    return MR_OK;
}

mr_status mr_need_grid(uint32_t *rows, uint32_t *columns, const json_t *object, mr_err *err) {
    const json_t *pair;
    mr_status status = mr_need_array(&pair, object, "grid", 2, 2, err);
    if (status != MR_OK) return status;
    const json_t *g = json_array_get(pair, 0), *w = json_array_get(pair, 1);
    if (!json_is_integer(g) || !json_is_integer(w) || json_integer_value(g) < 1 ||
        json_integer_value(w) < 1)
        return mr_fail(err, MR_ERR_FORMAT, "'grid' must be two positive integers");
    status = mr_grid_check((uint64_t)json_integer_value(g), (uint64_t)json_integer_value(w), err);
    if (status != MR_OK) return status;
    *rows = (uint32_t)json_integer_value(g);
    *columns = (uint32_t)json_integer_value(w);
    return MR_OK;
}

mr_status mr_need_id(char **out, const json_t *object, const char *key, mr_err *err) {
    const char *text = NULL;
    mr_status status = need(object, key, err);
    if (status == MR_OK) status = mr_json_string(&text, object, key, err);
    if (status == MR_OK) status = mr_id_check(text, key, err);
    if (status == MR_OK) *out = mr_strdup(text);
    return status;
}

/* --- writing ---------------------------------------------------------------------------------- */

char *mr_record_write(json_t *root) {
    if (!root) return NULL;
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (text && strlen(text) > MR_MAX_RECORD_BYTES) {
        free(text);
        text = NULL;
    }
    return text;
}

json_t *mr_record_number(uint64_t number) {
    return number > INT64_MAX ? NULL : json_integer((json_int_t)number);
}

json_t *mr_record_digest(const mr_digest *digest) {
    char text[MR_DIGEST_TEXT_BYTES];
    mr_digest_text(digest, text);
    return json_string(text);
}
