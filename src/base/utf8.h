/* UTF-8 decoding, encoding and the questions a stream asks of it (Unicode 15, section 3.9: well-formed byte sequences).
 * Pure functions; any thread. */
#ifndef WEIR_BASE_UTF8_H
#define WEIR_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT 0xFFFDu

/* Decodes the code point that starts at text[0], 0 < n_bytes. Returns the bytes it takes (1..4), with *code_point set; for an
 * ill-formed sequence UTF8_REPLACEMENT and the length of its maximal subpart (at least 1). */
size_t utf8_decode(const char *text, size_t n_bytes, uint32_t *code_point);
/* Writes 1..4 bytes to out[4] and returns how many. Surrogates and values over 0x10FFFF become U+FFFD. */
size_t utf8_encode(uint32_t code_point, char out[4]);
bool utf8_valid(const char *text, size_t n_bytes);
/* Code points in the text, ill-formed subparts counted as one each. */
size_t utf8_count(const char *text, size_t n_bytes);
/* The longest prefix that does not end inside a code point that later bytes could complete: equals n_bytes unless the text
 * ends in such a truncated (but so far well-formed) sequence. */
size_t utf8_complete_prefix(const char *text, size_t n_bytes);

#endif
