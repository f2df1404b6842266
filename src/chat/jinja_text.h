/* Text as Python's str sees it: code points, white space, case. Pure functions over UTF-8; any thread. */
#ifndef WEIR_CHAT_JINJA_TEXT_H
#define WEIR_CHAT_JINJA_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chat/jinja_value.h"

bool text_is_space(uint32_t code_point);
bool text_is_word(uint32_t code_point); /* \w of Python's re */
bool text_is_mark(uint32_t code_point); /* combining, may continue an identifier */
bool text_is_printable(uint32_t code_point);
/* Code point that ends at text[end], 0 < end; *start gets its first byte. */
uint32_t text_previous(const char *text, size_t end, size_t *start);
/* Byte offset of code point `index` (at most the count). */
size_t text_offset(const char *text, size_t n_bytes, size_t index);
bool text_is_ascii(const char *text, size_t n_bytes);
/* Byte offset of `needle` in text[from..n_bytes), or SIZE_MAX. */
size_t text_find(const char *text, size_t n_bytes, size_t from, const char *needle, size_t n_needle);
/* Bounds of the text without leading (left) and trailing (right) white space or, when `chars` is not NULL, code points of
 * that text. */
void text_strip(const value *text, const value *chars, bool left, bool right, size_t *start, size_t *end);

typedef enum text_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_SWAP, CASE_CAPITALIZE } text_case;
/* str.upper, lower, title, swapcase, capitalize, with the full mappings of Unicode's SpecialCasing (not locale). */
void text_map_case(text_sink *s, const char *text, size_t n_bytes, text_case to);
typedef enum text_class {
    CLASS_ALPHA, CLASS_DIGIT, CLASS_DECIMAL, CLASS_NUMERIC, CLASS_ALNUM, CLASS_SPACE, CLASS_UPPER, CLASS_LOWER, CLASS_TITLE,
    CLASS_ASCII, CLASS_IDENTIFIER, CLASS_PRINTABLE,
} text_class;
/* str.isalpha and its kin. */
bool text_is(const char *text, size_t n_bytes, text_class c);

#endif
