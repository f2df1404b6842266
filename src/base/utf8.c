/* See utf8.h. */
#include "base/utf8.h"

/* Length of the sequence a lead byte announces and the range of its second byte (Unicode 15, table 3-7); 0 = no lead byte. */
static size_t lead_info(unsigned char lead, unsigned char *low, unsigned char *high) {
    *low = 0x80;
    *high = 0xBF;
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) return 2;
    if (lead < 0xF0) {
        if (lead == 0xE0) *low = 0xA0;
        if (lead == 0xED) *high = 0x9F;
        return 3;
    }
    if (lead > 0xF4) return 0;
    if (lead == 0xF0) *low = 0x90;
    if (lead == 0xF4) *high = 0x8F;
    return 4;
}

/* Bytes of the sequence at text[0] that are well formed; *wanted gets the announced length (0 = not a lead byte). */
static size_t sequence_scan(const unsigned char *text, size_t n_bytes, size_t *wanted) {
    unsigned char low, high;
    *wanted = lead_info(text[0], &low, &high);
    if (*wanted == 0) return 0;
    size_t n = 1;
    for (; n < *wanted && n < n_bytes; n++) {
        if (text[n] < low || text[n] > high) break;
        low = 0x80;
        high = 0xBF;
    }
    return n;
}

size_t utf8_decode(const char *text, size_t n_bytes, uint32_t *code_point) {
    const unsigned char *s = (const unsigned char *)text;
    size_t wanted, n = sequence_scan(s, n_bytes, &wanted);
    if (n == 0 || n < wanted) {
        *code_point = UTF8_REPLACEMENT;
        return n ? n : 1;
    }
    static const unsigned char lead_mask[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t value = s[0] & lead_mask[n];
    for (size_t i = 1; i < n; i++) value = value << 6 | (s[i] & 0x3F);
    *code_point = value;
    return n;
}

size_t utf8_encode(uint32_t c, char out[4]) {
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) c = UTF8_REPLACEMENT;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

bool utf8_valid(const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes;) {
        size_t wanted, n = sequence_scan((const unsigned char *)text + i, n_bytes - i, &wanted);
        if (n == 0 || n < wanted) return false;
        i += n;
    }
    return true;
}

size_t utf8_count(const char *text, size_t n_bytes) {
    size_t count = 0;
    uint32_t ignored;
    for (size_t i = 0; i < n_bytes; count++) i += utf8_decode(text + i, n_bytes - i, &ignored);
    return count;
}

size_t utf8_complete_prefix(const char *text, size_t n_bytes) {
    size_t back = n_bytes < 3 ? n_bytes : 3;
    for (size_t i = 1; i <= back; i++) {
        unsigned char c = (unsigned char)text[n_bytes - i];
        if (c >= 0x80 && c < 0xC0) continue;
        size_t wanted, n = sequence_scan((const unsigned char *)text + n_bytes - i, i, &wanted);
        return n == i && n < wanted ? n_bytes - i : n_bytes;
    }
    return n_bytes;
}
