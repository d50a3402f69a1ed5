/* rpc_tls.c - the certificate files of an rpc endpoint: read, checked before they are used, read
 * again when they change.
 *
 * gRPC takes PEM texts and tells a bad one only as a failed handshake, long after; so the files are
 * parsed here once more with libcrypto, to say in one sentence which of them is wrong. Renewal
 * replaces three files one after the other: a set that does not fit is left alone until it does. */
#include "common/net/rpc_impl.h"

#ifdef MR_HAVE_GRPC
#include "common/base/file.h"
#include "common/base/log.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PEM_BYTES_MAX = 1 << 20 };

static void stamp_files(const mr_rpc_files *files, char *out, size_t room) {
    const char *paths[] = {files->ca_path, files->cert_path, files->key_path};
    size_t used = 0;

    out[0] = 0;
    for (int i = 0; i < 3; i++) {
        struct stat st;
        if (paths[i] == NULL || stat(paths[i], &st) != 0) continue;
        const int n = snprintf(out + used, room - used, "%d:%llu:%lld:%lld.%09ld;", i,
                               (unsigned long long)st.st_ino, (long long)st.st_size,
                               (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
        if (n > 0 && (size_t)n < room - used) used += (size_t)n;
    }
}

static X509 *parse_certificate(const char *pem) {
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *certificate = bio != NULL ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
    BIO_free(bio);
    ERR_clear_error();
    return certificate;
}

static int no_password(char *text, int room, int writing, void *context) {
    (void)text, (void)room, (void)writing, (void)context;
    return -1; /* a daemon must not ask on the terminal */
}

static mr_status check_pair(const mr_rpc_files *files, const char *cert, const char *key,
                            mr_err *err) {
    mr_status status = MR_OK;
    X509 *certificate = parse_certificate(cert);
    BIO *bio = BIO_new_mem_buf(key, -1);
    EVP_PKEY *secret = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;

    if (certificate == NULL)
        status = mr_fail(err, MR_ERR_FORMAT, "%s holds no PEM certificate", files->cert_path);
    else if (secret == NULL)
        status = mr_fail(err, MR_ERR_FORMAT, "%s holds no PEM private key without a password",
                         files->key_path);
    else if (X509_check_private_key(certificate, secret) != 1)
        status =
            mr_fail(err, MR_ERR_MISMATCH, "the key in %s does not belong to the certificate in %s",
                    files->key_path, files->cert_path);
    else if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
        status = mr_fail(err, MR_ERR_STALE, "the certificate in %s has expired", files->cert_path);
    EVP_PKEY_free(secret);
    BIO_free(bio);
    X509_free(certificate);
    ERR_clear_error();
    return status;
}

/* Reads all files into a set of its own, so that a bad one changes nothing. */
static mr_status read_all(const mr_rpc_files *files, mr_rpc_files *into, mr_err *err) {
    size_t bytes;
    mr_status status = mr_file_read(&into->ca, &bytes, files->ca_path, PEM_BYTES_MAX, err);
    if (status != MR_OK) return status;
    X509 *ca = parse_certificate(into->ca);
    X509_free(ca);
    if (ca == NULL)
        return mr_fail(err, MR_ERR_FORMAT, "%s holds no PEM certificate", files->ca_path);
    if (files->cert_path == NULL) return MR_OK;
    status = mr_file_read(&into->cert, &bytes, files->cert_path, PEM_BYTES_MAX, err);
    if (status == MR_OK)
        status = mr_file_read(&into->key, &bytes, files->key_path, PEM_BYTES_MAX, err);
    if (status == MR_OK) status = check_pair(files, into->cert, into->key, err);
    return status;
}

static void drop_texts(mr_rpc_files *files) {
    if (files->key != NULL) OPENSSL_cleanse(files->key, strlen(files->key));
    free(files->ca);
    free(files->cert);
    free(files->key);
    files->ca = files->cert = files->key = NULL;
}

static char *copy_path(const char *path) {
    return path != NULL ? mr_strdup(path) : NULL;
}

mr_status mr_rpc_files_open(mr_rpc_files *files, const mr_rpc_security *security, bool is_server,
                            mr_err *err) {
    const bool any = security->ca_file || security->cert_file || security->key_file;

    *files = (mr_rpc_files){.is_plain = security->is_plain};
    if (security->is_plain) {
        if (!any) return MR_OK;
        return mr_fail(err, MR_ERR_ARGUMENT, "certificate files are given, and plain connections");
    }
    if (security->ca_file == NULL)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "no CA file: TLS needs one, and plain connections must be asked for");
    if ((security->cert_file == NULL) != (security->key_file == NULL))
        return mr_fail(err, MR_ERR_ARGUMENT, "a certificate and its key must be given together");
    if (is_server && security->cert_file == NULL)
        return mr_fail(err, MR_ERR_ARGUMENT, "a server needs a certificate and its key");
    files->ca_path = copy_path(security->ca_file);
    files->cert_path = copy_path(security->cert_file);
    files->key_path = copy_path(security->key_file);
    stamp_files(files, files->stamps, sizeof(files->stamps));
    const mr_status status = read_all(files, files, err);
    if (status != MR_OK) mr_rpc_files_close(files);
    return status;
}

bool mr_rpc_files_renew(mr_rpc_files *files) {
    char stamps[sizeof(files->stamps)];
    mr_rpc_files fresh = {0};
    mr_err err = {{0}};

    if (files->is_plain) return false;
    stamp_files(files, stamps, sizeof(stamps));
    if (strcmp(stamps, files->stamps) == 0) return false;
    memcpy(files->stamps, stamps, sizeof(stamps));
    if (read_all(files, &fresh, &err) != MR_OK) {
        mr_log_warn("the certificates stay as they were: %s", err.text);
        drop_texts(&fresh);
        return false;
    }
    drop_texts(files);
    files->ca = fresh.ca;
    files->cert = fresh.cert;
    files->key = fresh.key;
    mr_log_info("certificates read again from %s",
                files->cert_path != NULL ? files->cert_path : files->ca_path);
    return true;
}

void mr_rpc_files_close(mr_rpc_files *files) {
    drop_texts(files);
    free(files->ca_path);
    free(files->cert_path);
    free(files->key_path);
    *files = (mr_rpc_files){0};
}

#else
typedef int mr_rpc_tls_is_not_built;
#endif
