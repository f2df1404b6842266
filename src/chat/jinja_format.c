/* Python's text formatting: the % operator, str.format with its format specifications, and strftime. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/utf8.h"
#include "chat/jinja_text.h"
#include "chat/jinja_value.h"

enum { MAX_WIDTH = 1 << 20, MAX_PRECISION = 400 };

typedef struct format_spec {
    char fill[4];
    size_t n_fill;
    char align; /* '<' '>' '^' '=' or 0 = by type */
    char sign;  /* '+' ' ' or 0 */
    bool alternate, zero;
    char grouping;        /* ',' '_' or 0 */
    int width, precision; /* -1 = none */
    char type;            /* 0 = none */
} format_spec;

/* ---- one value ---- */

/* body[n] with `prefix` (sign, 0x) before it, padded to the width; '=' pads between the two. */
static void put_padded(text_sink *s, const format_spec *f, const char *prefix, const char *body, size_t n, char default_align) {
    if (!s->failed) s->failed = render_charge(s->r, n / 4);
    size_t width = strlen(prefix) + utf8_count(body, n),
           pad = f->width > 0 && (size_t)f->width > width ? (size_t)f->width - width : 0;
    char align = f->align ? f->align : f->zero ? '=' : default_align;
    const char *fill = f->n_fill ? f->fill : f->zero ? "0" : " ";
    size_t n_fill = f->n_fill ? f->n_fill : 1, before = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    if (align == '=') sink_puts(s, prefix);
    sink_repeat(s, fill, n_fill, before);
    if (align != '=') sink_puts(s, prefix);
    sink_append(s, body, n);
    sink_repeat(s, fill, n_fill, pad - before);
}

/* Separators between groups of three (decimal) or four digits of the whole part of digits[n]. */
static size_t put_groups(char *out, const char *digits, size_t n, char separator, size_t group) {
    size_t whole = 0, n_out = 0;
    while (whole < n && isxdigit((unsigned char)digits[whole])) whole++;
    for (size_t i = 0; i < n; i++) {
        if (i && i < whole && (whole - i) % group == 0) out[n_out++] = separator;
        out[n_out++] = digits[i];
    }
    return n_out;
}

static const char *sign_of(bool negative, const format_spec *f) {
    return negative ? "-" : f->sign == '+' ? "+" : f->sign == ' ' ? " " : "";
}

static void put_integer(text_sink *s, const format_spec *f, bool negative, uint64_t magnitude) {
    char digits[80], grouped[160], prefix[8];
    int base = f->type == 'x' || f->type == 'X' ? 16 : f->type == 'o' ? 8 : f->type == 'b' ? 2 : 10, n = 0;
    const char *symbols = f->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    do digits[79 - n++] = symbols[magnitude % (unsigned)base];
    while ((magnitude /= (unsigned)base) > 0);
    while (n < f->precision && n < 79) digits[79 - n++] = '0';
    const char *start = digits + 80 - n;
    size_t length = (size_t)n;
    if (f->grouping) {
        length = put_groups(grouped, start, length, f->grouping, base == 10 ? 3 : 4);
        start = grouped;
    }
    snprintf(prefix, sizeof prefix, "%s%s%c", sign_of(negative, f), f->alternate && base != 10 ? "0" : "",
             f->alternate && base != 10 ? f->type : '\0');
    put_padded(s, f, prefix, start, length, '>');
}

/* Trailing ".0" for a float formatted without a type, which always shows that it is one. */
static void show_point(char *text, size_t capacity) {
    if (strpbrk(text, ".ein")) return;
    size_t n = strlen(text);
    if (n + 3 <= capacity) memcpy(text + n, ".0", 3);
}

static int put_double(text_sink *s, const format_spec *f, double d) {
    char text[800], grouped[1200], pattern[16];
    char type = f->type == '%' ? 'f' : f->type == 'n' ? 'g' : f->type;
    if (f->precision > MAX_PRECISION) return render_fail(s->r, WEIR_E_LIMIT, "precision too big");
    bool negative = signbit(d) && !isnan(d);
    double magnitude = fabs(d) * (f->type == '%' ? 100 : 1);
    if (type == 0 && f->precision < 0) {
        text_sink plain = SINK(s->r);
        value v;
        sink_double(&plain, magnitude);
        TRY(sink_finish(&plain, &v));
        snprintf(text, sizeof text, "%.*s", (int)v.n_bytes, v.text);
    } else {
        snprintf(pattern, sizeof pattern, "%%%s.*%c", f->alternate ? "#" : "", type ? type : 'g');
        int precision = f->precision < 0 ? 6 : f->precision == 0 && type == 0 ? 1 : f->precision;
        snprintf(text, sizeof text, pattern, precision, magnitude);
        if (type == 0) show_point(text, sizeof text);
    }
    const char *body = text;
    size_t n = strlen(text);
    if (f->grouping && isfinite(d)) {
        n = put_groups(grouped, text, n, f->grouping, 3);
        body = grouped;
    }
    if (f->type == '%' && n + 1 < sizeof grouped) {
        if (body == text) memcpy(grouped, text, n);
        body = grouped;
        grouped[n++] = '%';
    }
    put_padded(s, f, sign_of(negative, f), body, n, '>');
    return s->failed;
}

static void put_text(text_sink *s, const format_spec *f, const value *v) {
    size_t n = f->precision >= 0 ? text_offset(v->text, v->n_bytes, (size_t)f->precision) : v->n_bytes;
    format_spec plain = *f;
    if (plain.zero && !plain.align) plain.align = '<';
    put_padded(s, &plain, "", v->text, n, '<');
}

static bool is_float_type(char t) {
    return t && strchr("eEfFgG%", t);
}
static bool is_int_type(char t) {
    return t && strchr("bdoxXn", t);
}

static int put_number(text_sink *s, const format_spec *f, const value *v) {
    int64_t i;
    double d;
    if (is_float_type(f->type) || v->type == V_FLOAT) {
        if (is_int_type(f->type) && f->type != 'n') RAISE(s->r, "Unknown format code '%c' for object of type 'float'", f->type);
        value_as_double(v, &d);
        if ((v->flags & VALUE_INTEGRAL) && v->type == V_FLOAT && !is_float_type(f->type)) {
            value text;
            TRY(value_to_text(s->r, v, &text));
            put_padded(s, f, "", text.text, text.n_bytes, '>');
            return s->failed;
        }
        return put_double(s, f, d);
    }
    value_as_int(v, &i);
    if (f->type == 'c') {
        char encoded[4];
        if (i < 0 || i > 0x10FFFF) RAISE(s->r, "%%c arg not in range(0x110000)");
        put_padded(s, f, "", encoded, utf8_encode((uint32_t)i, encoded), '<');
        return s->failed;
    }
    put_integer(s, f, i < 0, i < 0 ? (uint64_t)0 - (uint64_t)i : (uint64_t)i);
    return s->failed;
}

/* ---- format % arguments ---- */

typedef struct percent {
    render *r;
    const value *arguments;
    size_t next; /* of a tuple's items */
    bool keyed, used_single;
    const char *p, *end;
} percent;

static int next_argument(percent *c, const value **out) {
    if (c->arguments->type == V_TUPLE) {
        if (c->next >= c->arguments->list->n) RAISE(c->r, "not enough arguments for format string");
        *out = &c->arguments->list->items[c->next++];
        return 0;
    }
    if (c->used_single) RAISE(c->r, "not enough arguments for format string");
    c->used_single = true;
    *out = c->arguments;
    return 0;
}

/* A number or *; -1 when neither is there. */
static int percent_number(percent *c, int *out) {
    *out = -1;
    if (c->p < c->end && *c->p == '*') {
        const value *v;
        int64_t i;
        c->p++;
        TRY(next_argument(c, &v));
        if (!value_as_int(v, &i)) RAISE(c->r, "* wants int");
        if (i > MAX_WIDTH || i < -MAX_WIDTH) return render_fail(c->r, WEIR_E_LIMIT, "width too big");
        *out = (int)i;
        return 0;
    }
    for (; c->p < c->end && *c->p >= '0' && *c->p <= '9'; c->p++) {
        *out = (*out < 0 ? 0 : *out) * 10 + (*c->p - '0');
        if (*out > MAX_WIDTH) return render_fail(c->r, WEIR_E_LIMIT, "width too big");
    }
    return 0;
}

static int percent_key(percent *c, const value **v) {
    const char *key = ++c->p;
    int nesting = 1;
    for (; c->p < c->end; c->p++) {
        nesting += (*c->p == '(') - (*c->p == ')');
        if (nesting == 0) break;
    }
    if (c->p >= c->end) RAISE(c->r, "incomplete format key");
    if (c->arguments->type != V_DICT) RAISE(c->r, "format requires a mapping");
    value name = value_text(key, (size_t)(c->p - key));
    value *found;
    c->p++;
    TRY(dict_find(c->r, c->arguments->dict, &name, &found));
    if (found == NULL) RAISE(c->r, "'%.*s'", (int)(name.n_bytes < 200 ? name.n_bytes : 200), name.text);
    *v = found;
    c->keyed = true;
    return 0;
}

/* ascii(): what is not ASCII as an escape. */
static int to_ascii(render *r, const value *v, value *out) {
    text_sink s = SINK(r);
    for (size_t i = 0; i < v->n_bytes;) {
        uint32_t c;
        i += utf8_decode(v->text + i, v->n_bytes - i, &c);
        if (c < 0x80)
            sink_putc(&s, (char)c);
        else
            sink_printf(&s, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    }
    return sink_finish(&s, out);
}

static int put_conversion(text_sink *s, format_spec *f, const value *v) {
    render *r = s->r;
    value text;
    double d;
    switch (f->type) {
    case 's':
    case 'r':
    case 'a': {
        text_sink plain = SINK(r);
        TRY(f->type == 's' ? value_print(&plain, v) : value_repr(&plain, v));
        TRY(sink_finish(&plain, &text));
        if (f->type == 'a') TRY(to_ascii(r, &text, &text));
        f->zero = false;
        put_padded(s, f, "", text.text,
                   f->precision >= 0 ? text_offset(text.text, text.n_bytes, (size_t)f->precision) : text.n_bytes, '>');
        return s->failed;
    }
    case 'c':
        if (is_string(v) && utf8_count(v->text, v->n_bytes) == 1) {
            put_padded(s, f, "", v->text, v->n_bytes, '>');
            return s->failed;
        }
        if (v->type != V_INT) RAISE(r, "%%c requires int or char");
        return put_number(s, f, v);
    default:
        break;
    }
    if (is_undefined(v)) return value_raise_undefined(r, v);
    bool real = strchr("eEfFgG", f->type) != NULL;
    if (!value_as_double(v, &d)) {
        if (real) RAISE(r, "must be real number, not %s", value_type_name(v));
        RAISE(r, "%%%c format: a real number is required, not %s", f->type, value_type_name(v));
    }
    if (real) return put_double(s, f, d);
    value whole = *v;
    if (v->type == V_FLOAT && !(v->flags & VALUE_INTEGRAL)) {
        if (strchr("xXo", f->type)) RAISE(r, "%%%c format: an integer is required, not float", f->type);
        if (!isfinite(d) || fabs(d) > 9e18) RAISE(r, "cannot convert float to integer");
        whole = value_int((int64_t)d);
    }
    if (f->type == 'i' || f->type == 'u') f->type = 'd';
    return put_number(s, f, &whole);
}

static int percent_field(percent *c, text_sink *s) {
    format_spec f = {.width = -1, .precision = -1};
    const value *v = NULL;
    if (c->p < c->end && *c->p == '(') TRY(percent_key(c, &v));
    bool left = false;
    for (; c->p < c->end && strchr("-+ #0", *c->p) && *c->p; c->p++) {
        left = left || *c->p == '-';
        if (*c->p == '+' || (*c->p == ' ' && !f.sign)) f.sign = *c->p;
        f.alternate = f.alternate || *c->p == '#';
        f.zero = f.zero || *c->p == '0';
    }
    TRY(percent_number(c, &f.width));
    if (f.width < -1) {
        left = true;
        f.width = -f.width;
    }
    if (c->p < c->end && *c->p == '.') {
        c->p++;
        TRY(percent_number(c, &f.precision));
        if (f.precision < 0) f.precision = 0;
    }
    while (c->p < c->end && (*c->p == 'h' || *c->p == 'l' || *c->p == 'L')) c->p++;
    if (c->p >= c->end) RAISE(c->r, "incomplete format");
    f.type = *c->p++;
    if (left) f.align = '<';
    if (f.type == '%') {
        sink_putc(s, '%');
        return s->failed;
    }
    if (!strchr("diouxXeEfFgGcrsa", f.type) || !f.type)
        RAISE(c->r, "unsupported format character '%c' (0x%x)", isprint((unsigned char)f.type) ? f.type : '?',
              (unsigned char)f.type);
    if (v == NULL) TRY(next_argument(c, &v));
    return put_conversion(s, &f, v);
}

int format_percent(render *r, const value *format, const value *arguments, value *out) {
    text_sink s = SINK(r);
    percent c = {.r = r, .arguments = arguments, .p = format->text, .end = format->text + format->n_bytes};
    value escaped;
    if ((format->flags & VALUE_SAFE) && is_string(arguments)) { /* markup escapes what is put into it */
        TRY(value_escape(r, arguments, &escaped));
        c.arguments = &escaped;
    } else if ((format->flags & VALUE_SAFE) && arguments->type == V_TUPLE) {
        TRY(list_new(r, V_TUPLE, arguments->list->n, &escaped));
        for (size_t i = 0; i < arguments->list->n; i++) {
            value item = arguments->list->items[i];
            if (is_string(&item)) TRY(value_escape(r, &item, &item));
            TRY(list_push(r, escaped.list, item));
        }
        c.arguments = &escaped;
    }
    while (c.p < c.end) {
        const char *percent_sign = memchr(c.p, '%', (size_t)(c.end - c.p));
        if (percent_sign == NULL) percent_sign = c.end;
        sink_append(&s, c.p, (size_t)(percent_sign - c.p));
        c.p = percent_sign;
        if (c.p == c.end) break;
        c.p++;
        TRY(render_charge(r, 1));
        TRY(percent_field(&c, &s));
    }
    bool rest = arguments->type == V_TUPLE ? c.next < arguments->list->n
                                           : !c.used_single && arguments->type != V_DICT && arguments->type != V_RANGE && !is_listlike(arguments);
    if (is_undefined(arguments)) rest = false;
    if (rest && !c.keyed) RAISE(r, "not all arguments converted during string formatting");
    TRY(sink_finish(&s, out));
    out->flags = format->flags;
    return 0;
}

/* ---- format.format(...) ---- */

typedef struct braces {
    render *r;
    const call_arguments *arguments;
    const value_dict *mapping;
    bool escape;
    int64_t next; /* automatic numbering; -1 once fields were numbered by hand */
    bool automatic;
} braces;

static int spec_error(render *r) {
    RAISE(r, "Invalid format specifier");
}

/* [[fill]align][sign][#][0][width][grouping][.precision][type] */
static int parse_spec(render *r, const char *p, size_t n, format_spec *f) {
    const char *end = p + n;
    *f = (format_spec){.width = -1, .precision = -1};
    uint32_t c;
    size_t first = n ? utf8_decode(p, n, &c) : 0;
    if (first && p + first < end && strchr("<>=^", p[first]) && p[first]) {
        memcpy(f->fill, p, first);
        f->n_fill = first;
        f->align = p[first];
        p += first + 1;
    } else if (p < end && *p && strchr("<>=^", *p)) {
        f->align = *p++;
    }
    if (p < end && (*p == '+' || *p == '-' || *p == ' ')) f->sign = *p++;
    if (p < end && *p == '#') f->alternate = true, p++;
    if (p < end && *p == '0') f->zero = true, p++;
    for (; p < end && isdigit((unsigned char)*p); p++) {
        f->width = (f->width < 0 ? 0 : f->width) * 10 + (*p - '0');
        if (f->width > MAX_WIDTH) return render_fail(r, WEIR_E_LIMIT, "width too big");
    }
    if (p < end && (*p == ',' || *p == '_')) f->grouping = *p++;
    if (p < end && *p == '.') {
        p++;
        if (p >= end || !isdigit((unsigned char)*p)) RAISE(r, "Format specifier missing precision");
        for (f->precision = 0; p < end && isdigit((unsigned char)*p); p++) {
            f->precision = f->precision * 10 + (*p - '0');
            if (f->precision > MAX_WIDTH) return render_fail(r, WEIR_E_LIMIT, "precision too big");
        }
    }
    if (p < end) f->type = *p++;
    if (p < end || (f->type && !strchr("bcdeEfFgGnosxX%", f->type))) return spec_error(r);
    return 0;
}

static int put_formatted(text_sink *s, const value *v, const value *spec) {
    format_spec f;
    if (spec->n_bytes == 0) return value_print(s, v);
    if (is_undefined(v)) RAISE(s->r, "unsupported format string passed to Undefined.__format__");
    TRY(parse_spec(s->r, spec->text, spec->n_bytes, &f));
    if (is_string(v)) {
        if (f.type && f.type != 's') RAISE(s->r, "Unknown format code '%c' for object of type 'str'", f.type);
        if (f.align == '=') RAISE(s->r, "'=' alignment not allowed in string format specifier");
        put_text(s, &f, v);
        return s->failed;
    }
    if (v->type == V_INT || v->type == V_BOOL || v->type == V_FLOAT) {
        if (f.type == 's') RAISE(s->r, "Unknown format code 's' for object of type '%s'", value_type_name(v));
        if (v->type != V_FLOAT && f.precision >= 0 && !is_float_type(f.type))
            RAISE(s->r, "Precision not allowed in integer format specifier");
        return put_number(s, &f, v);
    }
    RAISE(s->r, "unsupported format string passed to %s.__format__", value_type_name(v));
}

static bool all_digits(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)text[i])) return false;
    return n > 0;
}

/* The argument that a field's first part names: a number, nothing (the next one) or a keyword. */
static int field_argument(braces *b, const char *name, size_t n, value *out) {
    if (n == 0 || all_digits(name, n)) {
        int64_t i = n ? strtoll(name, NULL, 10) : b->next++;
        if (n == 0 && b->next == 0) RAISE(b->r, "cannot switch from manual field specification to automatic field numbering");
        if (n && b->automatic) RAISE(b->r, "cannot switch from automatic field numbering to manual field specification");
        if (n)
            b->next = -1;
        else
            b->automatic = true;
        if (b->mapping) RAISE(b->r, "Format string contains positional fields");
        if ((uint64_t)i >= b->arguments->n)
            RAISE(b->r, "Replacement index %lld out of range for positional args tuple", (long long)i);
        *out = b->arguments->items[i];
        return 0;
    }
    const value *found = b->mapping ? dict_find_text(b->mapping, name, n) : NULL;
    for (size_t i = 0; !b->mapping && i < b->arguments->n_keywords; i++) {
        const value *key = &b->arguments->keywords[i].name;
        if (key->n_bytes == n && memcmp(key->text, name, n) == 0) found = &b->arguments->keywords[i].item;
    }
    if (found == NULL) RAISE(b->r, "'%.*s'", (int)(n < 200 ? n : 200), name);
    *out = *found;
    return 0;
}

/* name.attribute[key]... */
static int field_value(braces *b, const char *p, size_t n, value *out) {
    const char *end = p + n;
    size_t first = 0;
    while (first < n && p[first] != '.' && p[first] != '[') first++;
    TRY(field_argument(b, p, first, out));
    for (p += first; p < end;) {
        const char *from = p + 1;
        bool item = *p == '[';
        for (p = from; p < end && (item ? *p != ']' : *p != '.' && *p != '['); p++) {
        }
        size_t length = (size_t)(p - from);
        if (item && p++ >= end) RAISE(b->r, "Missing ']' in format string");
        if (length == 0) RAISE(b->r, "Empty attribute in format string");
        if (item && p < end && *p != '.' && *p != '[') RAISE(b->r, "Only '.' or '[' may follow ']' in format field specifier");
        value key = item && all_digits(from, length) ? value_int(strtoll(from, NULL, 10)) : value_text(from, length);
        value object = *out;
        TRY(item ? value_get_item(b->r, &object, &key, out) : value_get_attribute(b->r, &object, &key, out));
    }
    return 0;
}

static int put_braces(braces *b, text_sink *s, const char *p, const char *end, int level);

/* What stands between { and }. */
static int put_field(braces *b, text_sink *s, const char *p, const char *end, int level) {
    const char *name_end = p;
    for (int brackets = 0; name_end < end && (brackets || (*name_end != '!' && *name_end != ':')); name_end++)
        brackets += (*name_end == '[') - (*name_end == ']' && brackets);
    value v, spec = value_text("", 0);
    TRY(field_value(b, p, (size_t)(name_end - p), &v));
    p = name_end;
    if (p < end && *p == '!') {
        if (end - p < 2) RAISE(b->r, "end of string while looking for conversion specifier");
        char conversion = p[1];
        if (conversion != 'r' && conversion != 's' && conversion != 'a')
            RAISE(b->r, "Unknown conversion specifier %c", isprint((unsigned char)conversion) ? conversion : '?');
        text_sink text = SINK(b->r);
        TRY(conversion == 's' ? value_print(&text, &v) : value_repr(&text, &v));
        TRY(sink_finish(&text, &v));
        if (conversion == 'a') TRY(to_ascii(b->r, &v, &v));
        p += 2;
        if (p < end && *p != ':') RAISE(b->r, "expected ':' after conversion specifier");
    }
    if (p < end) {
        text_sink text = SINK(b->r);
        TRY(put_braces(b, &text, p + 1, end, level + 1));
        TRY(sink_finish(&text, &spec));
    }
    if (!b->escape) return put_formatted(s, &v, &spec);
    text_sink text = SINK(b->r);
    value escaped;
    TRY(put_formatted(&text, &v, &spec));
    TRY(sink_finish(&text, &escaped));
    if (is_string(&v)) escaped.flags = v.flags;
    TRY(value_escape(b->r, &escaped, &escaped));
    sink_append(s, escaped.text, escaped.n_bytes);
    return s->failed;
}

static int put_braces(braces *b, text_sink *s, const char *p, const char *end, int level) {
    if (level > 1) RAISE(b->r, "Max string recursion exceeded");
    while (p < end) {
        const char *brace = p;
        while (brace < end && *brace != '{' && *brace != '}') brace++;
        sink_append(s, p, (size_t)(brace - p));
        if (brace == end) break;
        p = brace + 1;
        if (p < end && *p == *brace) {
            sink_putc(s, *p++);
            continue;
        }
        if (*brace == '}') RAISE(b->r, "Single '}' encountered in format string");
        const char *close = p;
        int nesting = 1;
        for (; close < end; close++) {
            nesting += (*close == '{') - (*close == '}');
            if (nesting == 0) break;
        }
        if (close == end)
            RAISE(b->r, p == end ? "Single '{' encountered in format string" : "expected '}' before end of string");
        TRY(render_charge(b->r, 1));
        TRY(put_field(b, s, p, close, level));
        p = close + 1;
    }
    return s->failed;
}

int format_braces(render *r, const value *format, const call_arguments *arguments, const value_dict *mapping, value *out) {
    braces b = {.r = r, .arguments = arguments, .mapping = mapping, .escape = format->flags & VALUE_SAFE};
    text_sink s = SINK(r);
    TRY(put_braces(&b, &s, format->text, format->text + format->n_bytes, 0));
    TRY(sink_finish(&s, out));
    out->flags = format->flags;
    return 0;
}

/* ---- strftime ---- */

int format_time(render *r, const value *format, const struct tm *tm, value *out) {
    text_sink s = SINK(r);
    const char *p = format->text, *end = p + format->n_bytes;
    while (p < end) {
        if (*p != '%') {
            sink_putc(&s, *p++);
            continue;
        }
        char directive[16], text[256];
        size_t n = 0;
        directive[n++] = *p++;
        while (p < end && n < 8 && *p && strchr("-_0^#:123456789EO", *p))
            directive[n++] = *p++; /* glibc's flags, as Python passes on */
        char kind = p < end ? *p++ : '\0';
        if (kind == 'f') {
            sink_puts(&s, "000000");
            continue;
        }
        if (kind == 'z' || kind == 'Z') continue; /* a naive local time has no zone */
        if (kind) directive[n++] = kind;
        directive[n] = '\0';
        TRY(render_charge(r, 1));
        size_t length = kind ? strftime(text, sizeof text, directive, tm) : 0;
        if (kind == '\0')
            sink_puts(&s, directive);
        else
            sink_append(&s, text, length);
    }
    return sink_finish(&s, out);
}
