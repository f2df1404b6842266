/* Expressions: names, operators, attributes, calls. One function for each kind of node, in a table. See jinja_eval.h. */
#include "chat/jinja_eval.h"

#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_text.h"

/* ---- scopes ---- */

int scope_new(render *r, scope *parent, scope **out) {
    ALLOC(r, *out, 1);
    (*out)->parent = parent;
    return 0;
}

int scope_set(render *r, scope *s, const atom *name, const value *item) {
    for (size_t i = 0; i < s->n; i++) {
        if (s->items[i].name != name) continue;
        s->items[i].item = *item;
        return 0;
    }
    if (s->n == s->capacity) {
        size_t capacity = s->capacity ? s->capacity * 2 : 4;
        binding *items;
        ALLOC(r, items, capacity);
        if (s->n) memcpy(items, s->items, s->n * sizeof *items);
        s->items = items;
        s->capacity = capacity;
    }
    s->items[s->n++] = (binding){name, *item};
    return render_charge(r, s->n / 16);
}

static int lookup(render *r, const atom *name, value *out) {
    size_t visited = 0;
    for (const scope *s = r->scope; s; s = s->parent) {
        for (size_t i = 0; i < s->n; i++) {
            if (s->items[i].name != name) continue;
            *out = s->items[i].item;
            return 0;
        }
        visited += s->n + 1;
    }
    TRY(render_charge(r, visited / 16));
    if (name == r->source->self_atom) {
        *out = (value){.type = V_SELF};
        return 0;
    }
    const value *variable = dict_find_text(r->variables, name->name.text, name->name.n_bytes);
    if (variable) {
        *out = *variable;
        return 0;
    }
    const jinja_builtin *function = function_find(name->name.text, name->name.n_bytes);
    if (function == NULL) return value_undefined_name(r, NULL, &name->name, out);
    *out = (value){.type = V_FUNCTION, .function = function};
    return 0;
}

/* ---- literals and operators ---- */

static int eval_const(render *r, const node *n, value *out) {
    (void)r;
    *out = n->constant;
    return 0;
}

static int eval_name(render *r, const node *n, value *out) {
    return lookup(r, n->atom, out);
}

static int eval_list(render *r, const node *n, value *out) {
    TRY(list_new(r, n->kind == N_TUPLE ? V_TUPLE : V_LIST, n->list.n, out));
    for (size_t i = 0; i < n->list.n; i++) {
        TRY(eval(r, n->list.items[i], &out->list->items[i]));
        out->list->n = i + 1;
    }
    return 0;
}

static int eval_dict(render *r, const node *n, value *out) {
    TRY(dict_new(r, out));
    for (size_t i = 0; i < n->list.n; i += 2) {
        value key, item;
        TRY(eval(r, n->list.items[i], &key));
        TRY(eval(r, n->list.items[i + 1], &item));
        TRY(dict_set(r, out->dict, &key, &item));
    }
    return 0;
}

static int eval_conditional(render *r, const node *n, value *out) {
    TRY(eval(r, n->b, out));
    if (value_truth(out)) return eval(r, n->a, out);
    if (n->c) return eval(r, n->c, out);
    return value_undefined_hint(
        r, out, "the inline if-expression on line %u evaluated to false and no else section was defined.", n->line);
}

static int eval_logic(render *r, const node *n, value *out) {
    TRY(eval(r, n->a, out));
    return value_truth(out) == (n->kind == N_AND) ? eval(r, n->b, out) : 0;
}

static int eval_not(render *r, const node *n, value *out) {
    TRY(eval(r, n->a, out));
    *out = value_bool(!value_truth(out));
    return 0;
}

static int compare(render *r, compare_op op, const value *a, const value *b, bool *out) {
    static const char *const names[] = {"==", "!=", ">", ">=", "<", "<="};
    int order = 0;
    switch (op) {
    case CMP_EQ:
    case CMP_NE:
        TRY(value_equal(r, a, b, out));
        *out = *out == (op == CMP_EQ);
        return 0;
    case CMP_IN:
    case CMP_NOT_IN:
        TRY(value_contains(r, b, a, out));
        *out = *out == (op == CMP_IN);
        return 0;
    default:
        TRY(value_order(r, a, b, names[op], &order));
    }
    *out = order != 2 && (op == CMP_GT ? order > 0 : op == CMP_GE ? order >= 0 : op == CMP_LT ? order < 0 : order <= 0);
    return 0;
}

static int eval_compare(render *r, const node *n, value *out) {
    value left, right;
    bool result = true;
    TRY(eval(r, n->a, &left));
    for (size_t i = 0; result && i < n->list.n; i++) {
        TRY(eval(r, n->list.items[i], &right));
        TRY(compare(r, (compare_op)n->ops[i], &left, &right, &result));
        left = right;
    }
    *out = value_bool(result);
    return 0;
}

static int eval_binary(render *r, const node *n, value *out) {
    value a, b;
    TRY(eval(r, n->a, &a));
    TRY(eval(r, n->b, &b));
    r->line = n->line;
    return value_arithmetic(r, (binary_op)n->op, &a, &b, out);
}

static int eval_concat(render *r, const node *n, value *out) {
    value part, *parts;
    bool safe = false;
    ALLOC(r, parts, n->list.n);
    for (size_t i = 0; i < n->list.n; i++) {
        TRY(eval(r, n->list.items[i], &parts[i]));
        safe = safe || (r->autoescape && is_string(&parts[i]) && (parts[i].flags & VALUE_SAFE));
    }
    for (size_t i = 0; i < n->list.n; i++) {
        TRY(safe ? value_escape(r, &parts[i], &part) : value_to_text(r, &parts[i], &part));
        if (!safe) part.flags = 0;
        if (i == 0)
            *out = part;
        else
            TRY(value_concat(r, out, &part, out));
    }
    return 0;
}

static int eval_sign(render *r, const node *n, value *out) {
    value v;
    TRY(eval(r, n->a, &v));
    if (n->kind == N_NEGATE) return value_negate(r, &v, out);
    if (is_undefined(&v)) return value_raise_undefined(r, &v);
    if (v.type != V_INT && v.type != V_BOOL && v.type != V_FLOAT)
        RAISE(r, "bad operand type for unary +: '%s'", value_type_name(&v));
    *out = v.type == V_BOOL ? value_int(v.boolean) : v;
    return 0;
}

/* ---- attributes and items ---- */

static bool is_mutator(const value *object, const value *name) {
    static const char *const list_mutators[] = {"append", "clear",  "pop",    "reverse", "insert",
                                                "sort",   "extend", "remove", NULL};
    static const char *const dict_mutators[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    const char *const *names = object->type == V_LIST ? list_mutators : object->type == V_DICT ? dict_mutators : NULL;
    for (; names && *names; names++)
        if (text_equals(name, *names)) return true;
    return false;
}

/* What Python's getattr would find; V_MISSING when nothing. */
static int find_attribute(render *r, const value *object, const value *name, value *out) {
    *out = (value){.type = V_MISSING};
    const value *found = NULL;
    switch (object->type) {
    case V_NAMESPACE:
        found = dict_find_text(object->dict, name->text, name->n_bytes);
        break;
    case V_LOOP:
        TRY(jinja_loop_attribute(r, object->loop, name, out));
        break;
    case V_MACRO:
        TRY(jinja_macro_attribute(r, object->macro, name, out));
        break;
    case V_SELF:
        for (const jinja_block *b = r->source->blocks; b; b = b->next)
            if (b->name->name.n_bytes == name->n_bytes && memcmp(b->name->name.text, name->text, name->n_bytes) == 0)
                *out = (value){.type = V_BLOCK, .block = b};
        break;
    case V_TUPLE:
        if (!(object->flags & VALUE_GROUP)) break;
        if (text_equals(name, "grouper")) found = &object->list->items[0];
        if (text_equals(name, "list")) found = &object->list->items[1];
        break;
    case V_RANGE:
        if (text_equals(name, "start")) *out = value_int(object->range->start);
        if (text_equals(name, "stop")) *out = value_int(object->range->stop);
        if (text_equals(name, "step")) *out = value_int(object->range->step);
        break;
    case V_CYCLER:
        if (text_equals(name, "current")) found = &object->cycler->items[object->cycler->position];
        if (text_equals(name, "pos")) *out = value_int((int64_t)object->cycler->position);
        break;
    case V_INT:
    case V_BOOL:
    case V_FLOAT:
        if (text_equals(name, "real") || (object->type != V_FLOAT && text_equals(name, "numerator"))) found = object;
        if (text_equals(name, "imag")) *out = object->type == V_FLOAT ? value_float(0) : value_int(0);
        if (object->type != V_FLOAT && text_equals(name, "denominator")) *out = value_int(1);
        break;
    default:
        break;
    }
    if (found) *out = *found;
    if (out->type == V_BOOL && found == object) *out = value_int(object->boolean);
    bool internal = name->n_bytes > 4 && memcmp(name->text, "__", 2) == 0 &&
                    memcmp(name->text + name->n_bytes - 2, "__", 2) == 0 &&
                    (object->type != V_DICT || dict_find_text(object->dict, name->text, name->n_bytes) == NULL);
    bool private = out->type != V_MISSING && name->n_bytes && name->text[0] == '_';
    if (internal || private || is_mutator(object, name))
        return value_undefined_hint(r, out, "access to attribute '%.*s' of '%s' object is unsafe.", (int)name->n_bytes,
                                    name->text, value_type_name(object));
    if (out->type != V_MISSING) return 0;
    const jinja_builtin *method = method_find(object, name->text, name->n_bytes);
    if (method == NULL) return 0;
    value_method *bound;
    ALLOC(r, bound, 1);
    *bound = (value_method){*object, method};
    *out = (value){.type = V_METHOD, .method = bound};
    return 0;
}

int value_get_attribute(render *r, const value *object, const value *name, value *out) {
    if (is_undefined(object)) return value_raise_undefined(r, object);
    value attribute;
    TRY(find_attribute(r, object, name, &attribute));
    if (attribute.type == V_MISSING && object->type == V_DICT) {
        const value *item = dict_find_text(object->dict, name->text, name->n_bytes);
        if (item) attribute = *item;
    }
    if (attribute.type == V_MISSING) return value_undefined_name(r, object, name, out);
    *out = attribute;
    return 0;
}

static int item_at(render *r, const value *object, int64_t index, value *out) {
    int64_t n;
    TRY(value_length(r, object, &n));
    if (index < 0) index += n;
    if (index < 0 || index >= n) return 0;
    if (object->type == V_RANGE) {
        *out = value_int(object->range->start + index * object->range->step);
    } else if (object->type == V_STRING) {
        uint32_t c;
        size_t at = (int64_t)object->n_bytes == n ? (size_t)index : text_offset(object->text, object->n_bytes, (size_t)index);
        *out = value_text(object->text + at, utf8_decode(object->text + at, object->n_bytes - at, &c));
        out->flags = object->flags;
    } else {
        *out = object->list->items[index];
    }
    return 0;
}

int value_get_item(render *r, const value *object, const value *key, value *out) {
    if (is_undefined(object)) return value_raise_undefined(r, object);
    value item = {.type = V_MISSING};
    int64_t index;
    bool indexable = object->type == V_LIST || object->type == V_TUPLE || object->type == V_STRING || object->type == V_RANGE;
    if (object->type == V_DICT && key->type != V_LIST && key->type != V_DICT) {
        value *found;
        TRY(dict_find(r, object->dict, key, &found));
        if (found) item = *found;
    } else if (indexable && value_as_int(key, &index)) {
        TRY(item_at(r, object, index, &item));
    }
    if (item.type == V_MISSING && is_string(key)) TRY(find_attribute(r, object, key, &item));
    if (item.type == V_MISSING) return value_undefined_name(r, object, key, out);
    *out = item;
    return 0;
}

static int eval_attribute(render *r, const node *n, value *out) {
    value object;
    TRY(eval(r, n->a, &object));
    r->line = n->line;
    return value_get_attribute(r, &object, &n->atom->name, out);
}

static int eval_slice(render *r, const node *n, const value *object, value *out) {
    value part[3];
    const node *nodes[3] = {n->a, n->b, n->c};
    for (int i = 0; i < 3; i++) {
        part[i] = value_none();
        if (nodes[i]) TRY(eval(r, nodes[i], &part[i]));
    }
    r->line = n->line;
    return value_slice(r, object, &part[0], &part[1], &part[2], out);
}

static int eval_item(render *r, const node *n, value *out) {
    value object, key;
    TRY(eval(r, n->a, &object));
    if (n->b->kind == N_SLICE) return eval_slice(r, n->b, &object, out);
    TRY(eval(r, n->b, &key));
    r->line = n->line;
    return value_get_item(r, &object, &key, out);
}

static int eval_lone_slice(render *r, const node *n, value *out) {
    (void)n, (void)out;
    RAISE(r, "a slice cannot be part of a tuple here");
}

/* ---- calls ---- */

static int add_keyword(render *r, call_arguments *a, const value *name, const value *item, size_t *capacity) {
    for (size_t i = 0; i < a->n_keywords; i++)
        if (a->keywords[i].name.n_bytes == name->n_bytes && memcmp(a->keywords[i].name.text, name->text, name->n_bytes) == 0)
            RAISE(r, "got multiple values for keyword argument '%.*s'", (int)name->n_bytes, name->text);
    if (a->n_keywords == *capacity) {
        size_t grown = *capacity ? *capacity * 2 : 4;
        keyword_argument *keywords;
        ALLOC(r, keywords, grown);
        if (a->n_keywords) memcpy(keywords, a->keywords, a->n_keywords * sizeof *keywords);
        a->keywords = keywords;
        *capacity = grown;
    }
    a->keywords[a->n_keywords++] = (keyword_argument){*name, *item};
    return render_charge(r, a->n_keywords);
}

static int add_mapping(render *r, call_arguments *a, const value *mapping, size_t *capacity) {
    if (mapping->type != V_DICT) RAISE(r, "argument after ** must be a mapping, not %s", value_type_name(mapping));
    for (size_t i = 0; i < mapping->dict->n; i++) {
        const dict_entry *e = &mapping->dict->entries[i];
        if (!is_string(&e->key)) RAISE(r, "keywords must be strings");
        TRY(add_keyword(r, a, &e->key, &e->item, capacity));
    }
    return 0;
}

static int eval_arguments(render *r, const node *n, const value *caller, call_arguments *out) {
    size_t capacity = 0;
    value item, positional;
    *out = (call_arguments){0};
    TRY(list_new(r, V_LIST, n->n_args, &positional));
    for (size_t i = 0; i < n->n_args; i++) {
        const node_argument *a = &n->args[i];
        TRY(eval(r, a->item, &item));
        if (a->kind == ARG_POSITIONAL) {
            TRY(list_push(r, positional.list, item));
        } else if (a->kind == ARG_KEYWORD) {
            TRY(add_keyword(r, out, &a->name, &item, &capacity));
        } else if (a->kind == ARG_STAR_STAR) {
            TRY(add_mapping(r, out, &item, &capacity));
        } else {
            value rest;
            TRY(value_to_list(r, &item, &rest));
            for (size_t k = 0; k < rest.list->n; k++) TRY(list_push(r, positional.list, rest.list->items[k]));
        }
    }
    if (caller) TRY(add_keyword(r, out, &r->source->caller_atom->name, caller, &capacity));
    out->items = positional.list->items;
    out->n = positional.list->n;
    return 0;
}

/* The parameter list's next name; NULL after the last. */
static const char *next_parameter(const char *p, size_t *n) {
    while (*p == ' ') p++;
    *n = strcspn(p, " ");
    return *n ? p : NULL;
}

int builtin_call(render *r, const jinja_builtin *b, const value *self, const call_arguments *arguments, value *out) {
    value argv[BUILTIN_MAX_PARAMETERS] = {0};
    TRY(render_charge(r, 1));
    if (b->parameters[0] == '*') return b->fn(r, self, argv, arguments, out);
    size_t n, count = 0, used = 0;
    const char *name;
    for (const char *p = b->parameters; (name = next_parameter(p, &n)); p = name + n, count++) {
        if (count < arguments->n) argv[count] = arguments->items[count];
        for (size_t i = 0; i < arguments->n_keywords; i++) {
            const keyword_argument *k = &arguments->keywords[i];
            if (k->name.n_bytes != n || memcmp(k->name.text, name, n) != 0) continue;
            if (count < arguments->n) RAISE(r, "%s() got multiple values for argument '%.*s'", b->name, (int)n, name);
            argv[count] = k->item;
            used++;
        }
        if (argv[count].type == V_MISSING && count < b->n_required)
            RAISE(r, "%s() missing required argument '%.*s'", b->name, (int)n, name);
    }
    if (arguments->n > count)
        RAISE(r, "%s() takes at most %zu argument%s but %zu were given", b->name, count, count == 1 ? "" : "s", arguments->n);
    for (size_t i = 0; used < arguments->n_keywords && i < arguments->n_keywords; i++) {
        const value *k = &arguments->keywords[i].name;
        bool known = false;
        for (const char *p = b->parameters; (name = next_parameter(p, &n)); p = name + n)
            known = known || (k->n_bytes == n && memcmp(k->text, name, n) == 0);
        if (!known) RAISE(r, "%s() got an unexpected keyword argument '%.*s'", b->name, (int)k->n_bytes, k->text);
    }
    return b->fn(r, self, argv, arguments, out);
}

int value_call(render *r, const value *callee, const call_arguments *arguments, value *out) {
    switch (callee->type) {
    case V_UNDEFINED:
        return value_raise_undefined(r, callee);
    case V_METHOD:
        return builtin_call(r, callee->method->builtin, &callee->method->self, arguments, out);
    case V_FUNCTION:
        return builtin_call(r, callee->function, NULL, arguments, out);
    case V_MACRO:
        return jinja_macro_call(r, callee->macro, arguments, out);
    case V_LOOP:
        return jinja_loop_call(r, callee->loop, arguments, out);
    case V_BLOCK:
        return jinja_block_call(r, callee->block, out);
    case V_JOINER:
        *out = callee->cycler->position++ ? callee->cycler->items[0] : value_text("", 0);
        return 0;
    default:
        RAISE(r, "'%s' object is not callable", value_type_name(callee));
    }
}

/* Python's immutable sandbox refuses to change a list or dict. Published templates do it all the same, to collections that
 * only this rendering sees, so a direct call is let through; the attribute stays undefined for everything else. */
static int eval_callee(render *r, const node *n, value *out) {
    value object;
    if (n->kind != N_ATTRIBUTE) return eval(r, n, out);
    TRY(eval(r, n->a, &object));
    r->line = n->line;
    TRY(value_get_attribute(r, &object, &n->atom->name, out));
    const jinja_builtin *mutator = is_mutator(&object, &n->atom->name) ? mutator_find(&object, &n->atom->name) : NULL;
    if (mutator == NULL) return 0;
    value_method *bound;
    ALLOC(r, bound, 1);
    *bound = (value_method){object, mutator};
    *out = (value){.type = V_METHOD, .method = bound};
    return 0;
}

int eval_call(render *r, const node *n, const value *caller, value *out) {
    value callee;
    call_arguments arguments;
    TRY(eval_callee(r, n->a, &callee));
    TRY(eval_arguments(r, n, caller, &arguments));
    r->line = n->line;
    return value_call(r, &callee, &arguments, out);
}

static int eval_plain_call(render *r, const node *n, value *out) {
    return eval_call(r, n, NULL, out);
}

/* A filter chain whose innermost operand is, where there is none, the text of a block. */
int eval_filter(render *r, const node *n, const value *block_text, value *out) {
    value operand;
    call_arguments arguments;
    TRY(render_enter(r));
    if (n->a == NULL && block_text)
        operand = *block_text;
    else if (n->a->kind == N_FILTER)
        TRY(eval_filter(r, n->a, block_text, &operand));
    else
        TRY(eval(r, n->a, &operand));
    r->line = n->line;
    if (n->builtin == NULL) RAISE(r, "No filter named '%.*s' found.", (int)n->constant.n_bytes, n->constant.text);
    TRY(eval_arguments(r, n, NULL, &arguments));
    r->line = n->line;
    TRY(builtin_call(r, n->builtin, &operand, &arguments, out));
    r->depth--;
    return 0;
}

static int eval_plain_filter(render *r, const node *n, value *out) {
    return eval_filter(r, n, NULL, out);
}

int test_call(render *r, const jinja_builtin *test, const value *v, const call_arguments *arguments, bool *out) {
    value result;
    TRY(builtin_call(r, test, v, arguments, &result));
    *out = value_truth(&result);
    return 0;
}

static int eval_test(render *r, const node *n, value *out) {
    value operand;
    call_arguments arguments = {0};
    bool result;
    TRY(eval(r, n->a, &operand));
    r->line = n->line;
    if (n->builtin == NULL) RAISE(r, "No test named '%.*s' found.", (int)n->constant.n_bytes, n->constant.text);
    if (n->n_args) TRY(eval_arguments(r, n, NULL, &arguments));
    TRY(test_call(r, n->builtin, &operand, &arguments, &result));
    *out = value_bool(result);
    return 0;
}

static int (*const evaluators[])(render *r, const node *n, value *out) = {
    [N_CONST] = eval_const,
    [N_NAME] = eval_name,
    [N_TUPLE] = eval_list,
    [N_LIST] = eval_list,
    [N_DICT] = eval_dict,
    [N_CONDITIONAL] = eval_conditional,
    [N_OR] = eval_logic,
    [N_AND] = eval_logic,
    [N_NOT] = eval_not,
    [N_COMPARE] = eval_compare,
    [N_BINARY] = eval_binary,
    [N_CONCAT] = eval_concat,
    [N_NEGATE] = eval_sign,
    [N_POSITIVE] = eval_sign,
    [N_ATTRIBUTE] = eval_attribute,
    [N_ITEM] = eval_item,
    [N_SLICE] = eval_lone_slice,
    [N_CALL] = eval_plain_call,
    [N_FILTER] = eval_plain_filter,
    [N_TEST] = eval_test,
    [N_NAMESPACE_TARGET] = eval_name,
};

int eval(render *r, const node *n, value *out) {
    TRY(render_enter(r));
    r->line = n->line;
    TRY(evaluators[n->kind](r, n, out));
    r->depth--;
    return 0;
}
