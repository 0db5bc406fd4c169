/* Certificates for the HTTPS proxy: an authority made at start, and one certificate for each name
 * or address that is asked for. Thread-safe after tls_setup. */
#ifndef LOBBY_TLS_H
#define LOBBY_TLS_H

#include <openssl/ssl.h>
#include <stdbool.h>

#include "base/error.h"

/* Makes the authority and writes its certificate to ca_file (PEM), or takes a certificate and key
 * (PEM text) that then serve for everything. */
bool tls_setup(const char *cert, const char *key, const char *ca_file, struct error *err);
/* A server context whose certificate fits clients that connect to this IPv4 address, whatever name
 * they ask for below exe.xyz or localhost. Caller frees. */
SSL_CTX *tls_context(const char *address, struct error *err);

#endif
