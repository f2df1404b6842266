/* Bearer tokens of requests against the configured ones. Pure functions; any thread. */
#ifndef WEIR_API_AUTH_H
#define WEIR_API_AUTH_H

#include <stddef.h>

typedef enum auth_result { AUTH_OK, AUTH_MISSING /* or malformed */, AUTH_WRONG } auth_result;

/* `header` is the Authorization header's value or NULL: "Bearer ", case-sensitive, then the token, trimmed; at most 8192 bytes,
 * without control characters. The time of the comparison depends on lengths only. AUTH_OK: *which is the token. */
auth_result auth_check(const char *header, const char *const *tokens, size_t n_tokens, size_t *which);
/* The same for a key by itself, as the header X-Api-Key carries it. NULL is missing. */
auth_result auth_check_key(const char *key, const char *const *tokens, size_t n_tokens, size_t *which);
/* The first 6 hex digits of the token's SHA-256, for logs. */
void auth_fingerprint(char out[7], const char *token);

#endif
