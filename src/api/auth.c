/* See auth.h. */
#include "api/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { MAX_HEADER_BYTES = 8192 };

static bool is_blank(char c) { return c == ' ' || c == '\t'; }

auth_result auth_check_key(const char *key, const char *const *tokens, size_t n_tokens, size_t *which) {
    if (key == NULL || strlen(key) > MAX_HEADER_BYTES) return AUTH_MISSING;
    while (is_blank(*key)) key++;
    size_t n = strlen(key);
    while (n > 0 && is_blank(key[n - 1])) n--;
    if (n == 0) return AUTH_MISSING;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)key[i] < 0x20 || key[i] == 0x7F) return AUTH_MISSING;
    size_t found = 0; /* its number + 1 */
    for (size_t i = 0; i < n_tokens; i++) { /* all of them, whichever matches */
        const bool equal = strlen(tokens[i]) == n && CRYPTO_memcmp(tokens[i], key, n) == 0;
        found |= (i + 1) & (0 - (size_t)(equal && found == 0));
    }
    *which = found ? found - 1 : 0;
    return found ? AUTH_OK : AUTH_WRONG;
}

auth_result auth_check(const char *header, const char *const *tokens, size_t n_tokens, size_t *which) {
    static const char scheme[] = "Bearer ";
    if (header == NULL || strlen(header) > MAX_HEADER_BYTES || strncmp(header, scheme, strlen(scheme)) != 0) return AUTH_MISSING;
    return auth_check_key(header + strlen(scheme), tokens, n_tokens, which);
}

void auth_fingerprint(char out[7], const char *token) {
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256((const unsigned char *)token, strlen(token), digest);
    snprintf(out, 7, "%02x%02x%02x", digest[0], digest[1], digest[2]);
}
