/* See auth.h. */
#include "api/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { MAX_HEADER_BYTES = 8192 };

static bool is_blank(char c) { return c == ' ' || c == '\t'; }

auth_result auth_check_key(const char *key, const char *const *tokens, size_t n_tokens) {
    if (key == NULL || strlen(key) > MAX_HEADER_BYTES) return AUTH_MISSING;
    while (is_blank(*key)) key++;
    size_t n = strlen(key);
    while (n > 0 && is_blank(key[n - 1])) n--;
    if (n == 0) return AUTH_MISSING;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)key[i] < 0x20 || key[i] == 0x7F) return AUTH_MISSING;
    bool equal = false;
    for (size_t i = 0; i < n_tokens; i++) /* all of them, whichever matches */
        if (strlen(tokens[i]) == n) equal |= CRYPTO_memcmp(tokens[i], key, n) == 0;
    return equal ? AUTH_OK : AUTH_WRONG;
}

auth_result auth_check(const char *header, const char *const *tokens, size_t n_tokens) {
    static const char scheme[] = "Bearer ";
    if (header == NULL || strlen(header) > MAX_HEADER_BYTES || strncmp(header, scheme, strlen(scheme)) != 0) return AUTH_MISSING;
    return auth_check_key(header + strlen(scheme), tokens, n_tokens);
}

void auth_fingerprint(char out[7], const char *token) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256((const unsigned char *)token, strlen(token), digest);
    snprintf(out, 7, "%02x%02x%02x", digest[0], digest[1], digest[2]);
}
