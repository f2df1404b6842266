/* Values as text: Python's str() and repr(), numbers included, and HTML escaping. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_ast.h"
#include "chat/jinja_text.h"
#include "chat/jinja_eval.h"

/* The shortest digits that read back as the same double; exponents from 16 digits and below 1e-4 (float.__repr__). */
void sink_double(text_sink *s, double d) {
    char digits[40], mantissa[32];
    if (isnan(d) || isinf(d)) {
        sink_puts(s, isnan(d) ? "nan" : d < 0 ? "-inf" : "inf");
        return;
    }
    int precision = fabs(d) < 2.3e-308 ? 0 : 14; /* subnormal numbers have fewer digits */
    do snprintf(digits, sizeof digits, "%.*e", precision, d);
    while (precision++ < 16 && strtod(digits, NULL) != d);
    char *e = strchr(digits, 'e');
    int exponent = atoi(e + 1), n = 0;
    for (const char *p = digits; p < e; p++)
        if (*p >= '0' && *p <= '9') mantissa[n++] = *p;
    while (n > 1 && mantissa[n - 1] == '0') n--;
    if (digits[0] == '-') sink_putc(s, '-');
    if (exponent < -4 || exponent >= 16) {
        sink_putc(s, mantissa[0]);
        if (n > 1) sink_putc(s, '.');
        sink_append(s, mantissa + 1, (size_t)n - 1);
        sink_printf(s, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        sink_puts(s, "0.");
        sink_repeat(s, "0", 1, (size_t)(-exponent - 1));
        sink_append(s, mantissa, (size_t)n);
    } else {
        int whole = exponent + 1;
        sink_append(s, mantissa, (size_t)(n < whole ? n : whole));
        sink_repeat(s, "0", 1, (size_t)(n < whole ? whole - n : 0));
        sink_putc(s, '.');
        if (n > whole)
            sink_append(s, mantissa + whole, (size_t)(n - whole));
        else
            sink_putc(s, '0');
    }
}

void value_repr_text(text_sink *s, const char *text, size_t n_bytes) {
    bool single = memchr(text, '\'', n_bytes) != NULL, both = single && memchr(text, '"', n_bytes) != NULL;
    char quote = single && !both ? '"' : '\'';
    if (!s->failed) s->failed = render_charge(s->r, n_bytes / 2);
    if (s->failed) return;
    sink_putc(s, quote);
    for (size_t i = 0, n; i < n_bytes; i += n) {
        uint32_t c;
        n = utf8_decode(text + i, n_bytes - i, &c);
        if (c == (unsigned char)quote || c == '\\') {
            sink_putc(s, '\\');
            sink_putc(s, (char)c);
        } else if (c == '\n' || c == '\r' || c == '\t') {
            sink_puts(s, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        } else if (text_is_printable(c)) {
            sink_append(s, text + i, n);
        } else {
            sink_printf(s, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        }
    }
    sink_putc(s, quote);
}

static int repr_items(text_sink *s, const value_list *l, const char *open, const char *close) {
    sink_puts(s, open);
    for (size_t i = 0; i < l->n; i++) {
        if (i) sink_puts(s, ", ");
        TRY(value_repr(s, &l->items[i]));
    }
    sink_puts(s, close);
    return s->failed;
}

static int repr_dict(text_sink *s, const value_dict *d) {
    sink_putc(s, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i) sink_puts(s, ", ");
        TRY(value_repr(s, &d->entries[i].key));
        sink_puts(s, ": ");
        TRY(value_repr(s, &d->entries[i].item));
    }
    sink_putc(s, '}');
    return s->failed;
}

static void repr_range(text_sink *s, const value_range *g) {
    sink_printf(s, "range(%lld, %lld", (long long)g->start, (long long)g->stop);
    if (g->step != 1) sink_printf(s, ", %lld", (long long)g->step);
    sink_putc(s, ')');
}

static int repr_compound(text_sink *s, const value *v) {
    static const char *const views[] = {"dict_keys([", "dict_values([", "dict_items(["};
    switch (v->type) {
    case V_LIST:
        return repr_items(s, v->list, "[", "]");
    case V_TUPLE:
        return repr_items(s, v->list, "(", v->list->n == 1 ? ",)" : ")");
    case V_VIEW:
        return repr_items(s, v->list, views[v->flags], "])");
    case V_DICT:
        return repr_dict(s, v->dict);
    default:
        sink_puts(s, "<Namespace ");
        TRY(repr_dict(s, v->dict));
        sink_putc(s, '>');
        return s->failed;
    }
}

int value_repr(text_sink *s, const value *v) {
    render *r = s->r;
    switch (v->type) {
    case V_MISSING:
    case V_UNDEFINED:
        sink_puts(s, "Undefined");
        break;
    case V_NONE:
        sink_puts(s, "None");
        break;
    case V_BOOL:
        sink_puts(s, v->boolean ? "True" : "False");
        break;
    case V_INT:
        sink_printf(s, "%lld", (long long)v->integer);
        break;
    case V_FLOAT:
        if (v->flags & VALUE_INTEGRAL)
            sink_printf(s, "%.0f", v->real);
        else
            sink_double(s, v->real);
        break;
    case V_STRING:
        if (v->flags & VALUE_SAFE) sink_puts(s, "Markup(");
        value_repr_text(s, v->text, v->n_bytes);
        if (v->flags & VALUE_SAFE) sink_putc(s, ')');
        break;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
    case V_DICT:
    case V_NAMESPACE: {
        if (r->depth >= VALUE_MAX_DEPTH)
            return render_fail(r, WEIR_E_LIMIT, "maximum recursion depth exceeded while getting the repr of an object");
        TRY(render_enter(r));
        TRY(repr_compound(s, v));
        r->depth--;
        break;
    }
    case V_ITERATOR:
        sink_printf(s, "<%s>", v->list->label);
        break;
    case V_RANGE:
        repr_range(s, v->range);
        break;
    case V_MACRO: {
        const value *name = jinja_macro_name(v->macro);
        sink_puts(s, "<Macro ");
        if (name->type == V_STRING)
            value_repr_text(s, name->text, name->n_bytes);
        else
            sink_puts(s, "anonymous"); /* of a call block */
        sink_putc(s, '>');
        break;
    }
    case V_LOOP:
        TRY(jinja_loop_print(s, v->loop));
        break;
    case V_METHOD:
        sink_puts(s, "<built-in method>");
        break;
    case V_FUNCTION:
        sink_printf(s, "<function %s>", v->function->name);
        break;
    case V_CYCLER:
        sink_puts(s, "<jinja2.utils.Cycler object>");
        break;
    case V_JOINER:
        sink_puts(s, "<jinja2.utils.Joiner object>");
        break;
    case V_SELF:
        sink_puts(s, "<TemplateReference None>");
        break;
    case V_BLOCK:
        sink_puts(s, "<jinja2.runtime.BlockReference object>");
        break;
    }
    return s->failed ? s->failed : render_charge(r, 1);
}

int value_print(text_sink *s, const value *v) {
    if (v->type == V_STRING) {
        sink_append(s, v->text, v->n_bytes);
        return s->failed;
    }
    return v->type == V_UNDEFINED || v->type == V_MISSING ? 0 : value_repr(s, v);
}

int value_to_text(render *r, const value *v, value *out) {
    if (v->type == V_STRING) {
        *out = *v;
        return 0;
    }
    text_sink s = SINK(r);
    TRY(value_print(&s, v));
    return sink_finish(&s, out);
}

int value_escape(render *r, const value *v, value *out) {
    TRY(value_to_text(r, v, out));
    if (out->flags & VALUE_SAFE) return 0;
    TRY(render_charge(r, out->n_bytes / 2));
    text_sink s = SINK(r);
    for (size_t i = 0; i < out->n_bytes; i++) {
        char c = out->text[i];
        const char *entity = c == '&'    ? "&amp;"
                             : c == '<'  ? "&lt;"
                             : c == '>'  ? "&gt;"
                             : c == '"'  ? "&#34;"
                             : c == '\'' ? "&#39;"
                                         : NULL;
        if (entity)
            sink_puts(&s, entity);
        else
            sink_putc(&s, c);
    }
    TRY(sink_finish(&s, out));
    out->flags |= VALUE_SAFE;
    return 0;
}

const char *value_type_name(const value *v) {
    static const char *const names[] = {
        [V_MISSING] = "Undefined",
        [V_UNDEFINED] = "Undefined",
        [V_NONE] = "NoneType",
        [V_BOOL] = "bool",
        [V_INT] = "int",
        [V_FLOAT] = "float",
        [V_STRING] = "str",
        [V_LIST] = "list",
        [V_TUPLE] = "tuple",
        [V_VIEW] = "dict_items",
        [V_ITERATOR] = "generator",
        [V_RANGE] = "range",
        [V_DICT] = "dict",
        [V_NAMESPACE] = "Namespace",
        [V_MACRO] = "Macro",
        [V_METHOD] = "builtin_function_or_method",
        [V_FUNCTION] = "function",
        [V_LOOP] = "LoopContext",
        [V_CYCLER] = "Cycler",
        [V_JOINER] = "Joiner",
        [V_SELF] = "TemplateReference",
        [V_BLOCK] = "BlockReference",
    };
    static const char *const views[] = {"dict_keys", "dict_values", "dict_items"};
    if (v->type == V_FLOAT && (v->flags & VALUE_INTEGRAL)) return "int";
    if (v->type == V_STRING && (v->flags & VALUE_SAFE)) return "Markup";
    return v->type == V_VIEW ? views[v->flags] : names[v->type];
}

/* What an undefined value says when it is used. */
int value_raise_undefined(render *r, const value *v) {
    const value_undefined *u = v->undefined;
    if (u == NULL) RAISE(r, "undefined value used");
    if (u->hint) RAISE(r, "%s", u->hint);
    text_sink s = SINK(r);
    value name;
    TRY(value_repr(&s, &u->name));
    TRY(sink_finish(&s, &name));
    int n = (int)(name.n_bytes < 200 ? name.n_bytes : 200);
    if (u->object.type == V_MISSING) RAISE(r, "%.*s is undefined", n, name.text);
    const char *type = value_type_name(&u->object), *module = "", *noun = " object";
    if (u->object.type == V_NONE) type = "None", noun = "";
    if (u->object.type == V_NAMESPACE || u->object.type == V_CYCLER || u->object.type == V_JOINER) module = "jinja2.utils.";
    if (u->object.type == V_MACRO || u->object.type == V_LOOP || u->object.type == V_SELF) module = "jinja2.runtime.";
    if (u->name.type == V_STRING) RAISE(r, "'%s%s%s' has no attribute %.*s", module, type, noun, n, name.text);
    RAISE(r, "%s%s%s has no element %.*s", module, type, noun, n, name.text);
}
