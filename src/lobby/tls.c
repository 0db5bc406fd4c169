#include "lobby/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "lobby/disk.h"

#define DAYS 30

static X509 *authority; /* NULL: `fixed` serves for everything */
static EVP_PKEY *authority_key, *leaf_key;
static SSL_CTX *fixed;

static bool failed(struct error *err, const char *what)
{
    char text[200];

    ERR_error_string_n(ERR_get_error(), text, sizeof text);
    return error_set(err, ERR_SYSTEM, "%s: %s", what, text);
}

static bool extend(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool ok = e && X509_add_ext(cert, e, -1);
    X509_EXTENSION_free(e);
    return ok;
}

/* Unsigned, with what both kinds have in common. */
static X509 *blank(const char *name, X509 *issuer, EVP_PKEY *key)
{
    X509 *cert = X509_new();
    unsigned char serial[8];

    if (!cert || RAND_bytes(serial, sizeof serial) != 1)
        return NULL;
    serial[0] &= 0x7f;
    BIGNUM *number = BN_bin2bn(serial, sizeof serial, NULL);
    BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
    BN_free(number);
    X509_set_version(cert, X509_VERSION_3);
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), DAYS * 86400L);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
                               (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(issuer ? issuer : cert));
    return cert;
}

static SSL_CTX *server(X509 *cert, EVP_PKEY *key)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    if (ctx && SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) == 1 &&
        SSL_CTX_use_certificate(ctx, cert) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1 &&
        SSL_CTX_check_private_key(ctx) == 1) {
        SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
        return ctx;
    }
    SSL_CTX_free(ctx);
    return NULL;
}

static bool use_given(const char *cert, const char *key, struct error *err)
{
    BIO *a = BIO_new_mem_buf(cert, -1), *b = BIO_new_mem_buf(key, -1);
    X509 *c = PEM_read_bio_X509(a, NULL, NULL, NULL);
    EVP_PKEY *k = PEM_read_bio_PrivateKey(b, NULL, NULL, NULL);

    fixed = c && k ? server(c, k) : NULL;
    /* the rest of the file is the chain */
    for (X509 *more; fixed && (more = PEM_read_bio_X509(a, NULL, NULL, NULL));)
        SSL_CTX_add_extra_chain_cert(fixed, more);
    X509_free(c);
    EVP_PKEY_free(k);
    BIO_free(a);
    BIO_free(b);
    return fixed || failed(err, "the certificate and key for the proxy");
}

static bool write_authority(const char *path, struct error *err)
{
    BIO *out = BIO_new(BIO_s_mem());
    char *text;

    if (!out || !PEM_write_bio_X509(out, authority)) {
        BIO_free(out);
        return failed(err, "write the proxy's authority");
    }
    long n = BIO_get_mem_data(out, &text);
    bool ok = disk_put(path, 0644, (uid_t)-1, text, (size_t)n, err);
    BIO_free(out);
    return ok;
}

bool tls_setup(const char *cert, const char *key, const char *ca_file, struct error *err)
{
    if (cert)
        return use_given(cert, key, err);
    authority_key = EVP_EC_gen("P-256");
    leaf_key = EVP_EC_gen("P-256");
    authority = authority_key && leaf_key ? blank("exedev-lobby", NULL, authority_key) : NULL;
    if (!authority || !extend(authority, authority, NID_basic_constraints, "critical,CA:TRUE") ||
        !extend(authority, authority, NID_key_usage, "critical,keyCertSign,cRLSign") ||
        !extend(authority, authority, NID_subject_key_identifier, "hash") ||
        !X509_sign(authority, authority_key, EVP_sha256()))
        return failed(err, "make an authority for the proxy");
    return write_authority(ca_file, err);
}

SSL_CTX *tls_context(const char *address, struct error *err)
{
    if (fixed) {
        SSL_CTX_up_ref(fixed);
        return fixed;
    }
    cleanup_free char *names =
        xasprintf("IP:%s,DNS:localhost,DNS:*.exe.localhost,DNS:*.exe.xyz", address);
    X509 *cert = blank("exedev-lobby proxy", authority, leaf_key);
    SSL_CTX *ctx = NULL;
    if (cert && extend(cert, authority, NID_subject_alt_name, names) &&
        extend(cert, authority, NID_ext_key_usage, "serverAuth") &&
        extend(cert, authority, NID_authority_key_identifier, "keyid") &&
        X509_sign(cert, authority_key, EVP_sha256()))
        ctx = server(cert, leaf_key);
    X509_free(cert);
    if (!ctx)
        failed(err, "make a certificate for the proxy");
    return ctx;
}
