/* Statements: output, branches, loops, assignments, macros, blocks. See jinja_eval.h. */
#include <stdio.h>
#include <string.h>

#include "chat/jinja_eval.h"

struct jinja_macro {
    value name;
    const node *node; /* N_MACRO or N_CALL_BLOCK */
    scope *scope;     /* where it was defined */
    bool autoescape;
};

struct jinja_loop {
    const node *node;
    scope *outer;
    scope *filter_scope; /* for the condition; NULL without one */
    value_list *source;
    size_t *position; /* next item of `source` */
    size_t own_position;
    int64_t index0, depth0;
    value current, before, after; /* V_MISSING: not there, not looked at */
    value changed;                /* what loop.changed last saw */
    int64_t length;               /* -1 = not known yet */
};

static int exec(render *r, const node *n);

int exec_list(render *r, const node_list *body) {
    for (size_t i = 0; i < body->n; i++) {
        int result = exec(r, body->items[i]);
        if (result != FLOW_NEXT) return result;
    }
    return FLOW_NEXT;
}

/* Runs `body` in a new scope under `parent`. */
static int exec_scoped(render *r, const node_list *body, scope *parent) {
    scope *saved = r->scope;
    TRY(scope_new(r, parent, &r->scope));
    int result = exec_list(r, body);
    r->scope = saved;
    return result;
}

/* As exec_scoped, with the output as a text; the flow is returned. */
static int capture_flow(render *r, const node_list *body, scope *parent, value *out) {
    text_sink s = SINK(r), *saved = r->out;
    r->out = &s;
    int result = exec_scoped(r, body, parent);
    r->out = saved;
    if (result < 0) return result;
    TRY(sink_finish(&s, out));
    if (r->autoescape) out->flags |= VALUE_SAFE;
    return result;
}

int exec_capture(render *r, const node_list *body, scope *parent, value *out) {
    int result = capture_flow(r, body, parent, out);
    return result < 0 ? result : 0;
}

/* A macro may be called when the blocks around it are left: none of them may be reused. */
static void capture_scopes(scope *s) {
    for (; s && !s->captured; s = s->parent) s->captured = true;
}

/* ---- output ---- */

static int check_output(render *r) {
    if (r->out->failed) return r->out->failed;
    if (r->out->n <= r->max_output_bytes) return 0;
    return render_fail(r, WEIR_E_LIMIT, "the output is longer than %zu bytes", r->max_output_bytes);
}

static int put_value(render *r, const value *v) {
    value escaped;
    if (r->autoescape && !is_undefined(v)) {
        TRY(value_escape(r, v, &escaped));
        TRY(value_print(r->out, &escaped));
    } else {
        TRY(value_print(r->out, v));
    }
    return check_output(r);
}

static int exec_data(render *r, const node *n) {
    sink_append(r->out, n->constant.text, n->constant.n_bytes);
    return check_output(r);
}

static int exec_print(render *r, const node *n) {
    for (size_t i = 0; i < n->list.n; i++) {
        value v;
        TRY(eval(r, n->list.items[i], &v));
        TRY(put_value(r, &v));
    }
    return 0;
}

static int exec_if(render *r, const node *n) {
    for (size_t i = 0; i < n->list.n; i++) {
        value condition;
        TRY(eval(r, n->list.items[i], &condition));
        if (value_truth(&condition)) return exec_list(r, &n->bodies[i]);
    }
    return exec_list(r, &n->else_body);
}

/* ---- assignment ---- */

static int unpack(render *r, const node *target, const value *item) {
    value items;
    if (!value_iterable(item)) RAISE(r, "cannot unpack non-iterable %s object", value_type_name(item));
    TRY(value_to_list(r, item, &items));
    if (items.list->n > target->list.n) RAISE(r, "too many values to unpack (expected %zu)", target->list.n);
    if (items.list->n < target->list.n)
        RAISE(r, "not enough values to unpack (expected %zu, got %zu)", target->list.n, items.list->n);
    for (size_t i = 0; i < items.list->n; i++) TRY(assign(r, target->list.items[i], &items.list->items[i]));
    return 0;
}

int assign(render *r, const node *target, const value *item) {
    if (target->kind == N_NAME) return scope_set(r, r->scope, target->atom, item);
    if (target->kind == N_TUPLE) return unpack(r, target, item);
    value object;
    TRY(eval(r, target, &object));
    if (object.type != V_NAMESPACE) RAISE(r, "cannot assign attribute on non-namespace object");
    return dict_set(r, object.dict, &target->constant, item);
}

static int exec_set(render *r, const node *n) {
    value v;
    TRY(eval(r, n->b, &v));
    r->line = n->line;
    return assign(r, n->a, &v);
}

static int exec_set_block(render *r, const node *n) {
    value text, filtered;
    int result = capture_flow(r, &n->body, r->scope, &text);
    if (result != FLOW_NEXT) return result;
    if (n->b == NULL) return assign(r, n->a, &text);
    TRY(eval_filter(r, n->b, &text, &filtered));
    return assign(r, n->a, &filtered);
}

static int exec_filter_block(render *r, const node *n) {
    value text, filtered;
    int result = capture_flow(r, &n->body, r->scope, &text);
    if (result != FLOW_NEXT) return result;
    TRY(eval_filter(r, n->a, &text, &filtered));
    TRY(value_print(r->out, &filtered));
    return check_output(r);
}

static int exec_with(render *r, const node *n) {
    scope *outer = r->scope, *inner;
    TRY(scope_new(r, outer, &inner));
    for (size_t i = 0; i < n->list.n; i += 2) {
        value v;
        TRY(eval(r, n->list.items[i + 1], &v));
        r->scope = inner;
        TRY(assign(r, n->list.items[i], &v));
        r->scope = outer;
    }
    r->scope = inner;
    int result = exec_list(r, &n->body);
    r->scope = outer;
    return result;
}

static int exec_autoescape(render *r, const node *n) {
    value v;
    bool saved = r->autoescape;
    TRY(eval(r, n->a, &v));
    r->autoescape = value_truth(&v);
    int result = exec_scoped(r, &n->body, r->scope);
    r->autoescape = saved;
    return result;
}

/* ---- loops ---- */

/* The next item that passes the loop's condition; V_MISSING at the end. */
static int loop_fetch(render *r, jinja_loop *l, value *out) {
    *out = (value){.type = V_MISSING};
    while (*l->position < l->source->n) {
        value item = l->source->items[(*l->position)++], condition;
        TRY(render_charge(r, 1));
        if (l->filter_scope) {
            scope *saved = r->scope;
            l->filter_scope->n = 0;
            r->scope = l->filter_scope;
            TRY(assign(r, l->node->a, &item));
            TRY(eval(r, l->node->c, &condition));
            r->scope = saved;
            if (!value_truth(&condition)) continue;
        }
        *out = item;
        return 0;
    }
    return 0;
}

static int loop_peek(render *r, jinja_loop *l) {
    return l->after.type == V_MISSING ? loop_fetch(r, l, &l->after) : 0;
}

/* A filtered loop has to look at all that is left to know its length. */
int jinja_loop_length(render *r, jinja_loop *l, int64_t *out) {
    if (l->length < 0) {
        value rest, item;
        TRY(list_new(r, V_LIST, 0, &rest));
        for (;;) {
            TRY(loop_fetch(r, l, &item));
            if (item.type == V_MISSING) break;
            TRY(list_push(r, rest.list, item));
        }
        l->length = (int64_t)rest.list->n + l->index0 + 1 + (l->after.type != V_MISSING);
        l->source = rest.list;
        l->own_position = 0;
        l->position = &l->own_position;
        l->filter_scope = NULL;
    }
    *out = l->length;
    return 0;
}

int jinja_loop_print(text_sink *s, jinja_loop *l) {
    int64_t n;
    TRY(jinja_loop_length(s->r, l, &n));
    sink_printf(s, "<LoopContext %lld/%lld>", (long long)l->index0 + 1, (long long)n);
    return s->failed;
}

int jinja_loop_attribute(render *r, jinja_loop *l, const value *name, value *out) {
    int64_t n;
    if (text_equals(name, "index0")) *out = value_int(l->index0);
    if (text_equals(name, "index")) *out = value_int(l->index0 + 1);
    if (text_equals(name, "first")) *out = value_bool(l->index0 == 0);
    if (text_equals(name, "depth0")) *out = value_int(l->depth0);
    if (text_equals(name, "depth")) *out = value_int(l->depth0 + 1);
    if (text_equals(name, "last")) {
        TRY(loop_peek(r, l));
        *out = value_bool(l->after.type == V_MISSING);
    } else if (text_equals(name, "length")) {
        TRY(jinja_loop_length(r, l, &n));
        *out = value_int(n);
    } else if (text_equals(name, "revindex")) {
        TRY(jinja_loop_length(r, l, &n));
        *out = value_int(n - l->index0);
    } else if (text_equals(name, "revindex0")) {
        TRY(jinja_loop_length(r, l, &n));
        *out = value_int(n - l->index0 - 1);
    } else if (text_equals(name, "previtem")) {
        if (l->index0 == 0) return value_undefined_hint(r, out, "there is no previous item");
        *out = l->before;
    } else if (text_equals(name, "nextitem")) {
        TRY(loop_peek(r, l));
        if (l->after.type == V_MISSING) return value_undefined_hint(r, out, "there is no next item");
        *out = l->after;
    }
    return 0;
}

int jinja_loop_cycle(render *r, jinja_loop *l, const call_arguments *arguments, value *out) {
    if (arguments->n == 0) RAISE(r, "no items for cycling given");
    *out = arguments->items[(uint64_t)l->index0 % arguments->n];
    return 0;
}

int jinja_loop_changed(render *r, jinja_loop *l, const call_arguments *arguments, value *out) {
    value seen;
    bool same = false;
    TRY(list_new(r, V_TUPLE, arguments->n, &seen));
    for (size_t i = 0; i < arguments->n; i++) TRY(list_push(r, seen.list, arguments->items[i]));
    if (l->changed.type != V_MISSING) TRY(value_equal(r, &l->changed, &seen, &same));
    l->changed = seen;
    *out = value_bool(!same);
    return 0;
}

/* One iteration after another; `*ran` gets whether a body ran to its end (what decides about the else branch in Jinja). */
static int loop_run(render *r, jinja_loop *l, bool *ran) {
    scope *saved = r->scope, *inner = NULL;
    value self = {.type = V_LOOP, .loop = l};
    for (;;) {
        value item = l->after;
        l->after = (value){.type = V_MISSING};
        if (item.type == V_MISSING) TRY(loop_fetch(r, l, &item));
        if (item.type == V_MISSING) break;
        l->index0++;
        l->before = l->current;
        l->current = item;
        if (inner == NULL || inner->captured) TRY(scope_new(r, l->outer, &inner));
        inner->n = 0;
        r->scope = inner;
        TRY(scope_set(r, inner, r->source->loop_atom, &self));
        TRY(assign(r, l->node->a, &item));
        int result = exec_list(r, &l->node->body);
        if (result < 0) return result;
        if (result == FLOW_BREAK) break;
        if (result == FLOW_NEXT) *ran = true;
    }
    r->scope = saved;
    return 0;
}

static int run_for(render *r, const node *n, const value *iterable, scope *outer, int64_t depth0) {
    jinja_loop *l;
    bool ran = false;
    if (!value_iterable(iterable) || iterable->type == V_LOOP)
        RAISE(r, "'%s' object is not iterable", value_type_name(iterable));
    ALLOC(r, l, 1);
    *l = (jinja_loop){.node = n, .outer = outer, .index0 = -1, .depth0 = depth0, .length = -1};
    l->position = &l->own_position;
    if (is_listlike(iterable)) {
        l->source = iterable->list;
        if (iterable->type == V_ITERATOR) l->position = &iterable->list->position;
    } else {
        value items;
        TRY(value_to_list(r, iterable, &items));
        l->source = items.list;
    }
    if (n->c)
        TRY(scope_new(r, outer, &l->filter_scope));
    else if (iterable->type != V_ITERATOR)
        l->length = (int64_t)l->source->n;
    TRY(loop_run(r, l, &ran));
    if (ran || n->else_body.n == 0) return FLOW_NEXT;
    return exec_scoped(r, &n->else_body, outer);
}

static int exec_for(render *r, const node *n) {
    value iterable;
    TRY(eval(r, n->b, &iterable));
    r->line = n->line;
    return run_for(r, n, &iterable, r->scope, 0);
}

int jinja_loop_call(render *r, jinja_loop *l, const call_arguments *arguments, value *out) {
    if (!(l->node->flags & NODE_RECURSIVE)) RAISE(r, "The loop must have the 'recursive' marker to be called recursively.");
    if (arguments->n != 1) RAISE(r, "loop() takes exactly one argument (%zu given)", arguments->n);
    text_sink s = SINK(r), *saved = r->out;
    scope *saved_scope = r->scope;
    TRY(render_enter(r));
    r->out = &s;
    int result = run_for(r, l->node, &arguments->items[0], l->outer, l->depth0 + 1);
    if (result < 0) return result;
    r->out = saved;
    r->scope = saved_scope;
    r->depth--;
    return sink_finish(&s, out);
}

/* ---- macros ---- */

static int macro_new(render *r, const value *name, const node *n, value *out) {
    jinja_macro *m;
    ALLOC(r, m, 1);
    *m = (jinja_macro){*name, n, r->scope, r->autoescape};
    capture_scopes(r->scope);
    *out = (value){.type = V_MACRO, .macro = m};
    return 0;
}

const value *jinja_macro_name(const jinja_macro *m) {
    return &m->name;
}

int jinja_macro_attribute(render *r, const jinja_macro *m, const value *name, value *out) {
    if (text_equals(name, "name")) *out = m->name;
    if (text_equals(name, "catch_kwargs")) *out = value_bool(m->node->flags & NODE_USES_KWARGS);
    if (text_equals(name, "catch_varargs")) *out = value_bool(m->node->flags & NODE_USES_VARARGS);
    if (text_equals(name, "caller")) *out = value_bool(m->node->flags & NODE_USES_CALLER);
    if (!text_equals(name, "arguments")) return 0;
    TRY(list_new(r, V_TUPLE, m->node->list.n, out));
    for (size_t i = 0; i < m->node->list.n; i++) TRY(list_push(r, out->list, m->node->list.items[i]->atom->name));
    return 0;
}

/* The keyword argument called `name`, marked as used; NULL when there is none. */
static const value *take_keyword(const call_arguments *a, const value *name, bool *used) {
    for (size_t i = 0; i < a->n_keywords; i++) {
        const value *k = &a->keywords[i].name;
        if (used[i] || k->n_bytes != name->n_bytes || memcmp(k->text, name->text, k->n_bytes) != 0) continue;
        used[i] = true;
        return &a->keywords[i].item;
    }
    return NULL;
}

/* Binds parameters: positional, keyword, default, undefined, in the scope of the macro, where defaults see those before them.
 */
static int bind_parameters(render *r, const jinja_macro *m, const call_arguments *a, bool *used, bool *found_caller) {
    const node_list *parameters = &m->node->list, *defaults = &m->node->defaults;
    value *given;
    ALLOC(r, given, parameters->n + 1);
    for (size_t i = 0; i < parameters->n; i++) {
        const atom *name = parameters->items[i]->atom;
        if (i < a->n) {
            given[i] = a->items[i];
        } else {
            const value *keyword = take_keyword(a, &name->name, used);
            if (keyword) given[i] = *keyword;
        }
        if (name == r->source->caller_atom) *found_caller = true;
        TRY(scope_set(r, r->scope, name, &given[i]));
    }
    for (size_t i = 0; i < parameters->n; i++) {
        const atom *name = parameters->items[i]->atom;
        size_t first_default = parameters->n - defaults->n;
        if (given[i].type != V_MISSING) continue;
        if (i >= first_default)
            TRY(eval(r, defaults->items[i - first_default], &given[i]));
        else
            TRY(value_undefined_hint(r, &given[i], "parameter '%.*s' was not provided", (int)name->name.n_bytes,
                                     name->name.text));
        TRY(scope_set(r, r->scope, name, &given[i]));
    }
    return 0;
}

/* caller, kwargs and varargs, for macros that read them; what is left over otherwise is an error. */
static int bind_special(render *r, const jinja_macro *m, const call_arguments *a, bool *used, bool found_caller) {
    const value *name = &m->name;
    value v;
    if ((m->node->flags & NODE_USES_CALLER) && !found_caller) {
        const value *caller = take_keyword(a, &r->source->caller_atom->name, used);
        if (caller)
            v = *caller;
        else
            TRY(value_undefined_hint(r, &v, "No caller defined"));
        TRY(scope_set(r, r->scope, r->source->caller_atom, &v));
    }
    if (m->node->flags & NODE_USES_KWARGS) TRY(dict_new(r, &v));
    for (size_t i = 0; i < a->n_keywords; i++) {
        const value *k = &a->keywords[i].name;
        if (used[i]) continue;
        if (!(m->node->flags & NODE_USES_KWARGS))
            RAISE(r, "macro '%.*s' takes no keyword argument '%.*s'", (int)name->n_bytes, name->text, (int)k->n_bytes, k->text);
        TRY(dict_set(r, v.dict, k, &a->keywords[i].item));
    }
    if (m->node->flags & NODE_USES_KWARGS) TRY(scope_set(r, r->scope, r->source->kwargs_atom, &v));
    size_t n = m->node->list.n;
    if (m->node->flags & NODE_USES_VARARGS) {
        TRY(list_new(r, V_TUPLE, a->n > n ? a->n - n : 0, &v));
        for (size_t i = n; i < a->n; i++) TRY(list_push(r, v.list, a->items[i]));
        TRY(scope_set(r, r->scope, r->source->varargs_atom, &v));
    } else if (a->n > n) {
        RAISE(r, "macro '%.*s' takes not more than %zu argument(s)", (int)name->n_bytes, name->text, n);
    }
    return 0;
}

int jinja_macro_call(render *r, const jinja_macro *m, const call_arguments *a, value *out) {
    bool *used, found_caller = false, autoescape = r->autoescape;
    scope *saved = r->scope;
    TRY(render_enter(r));
    ALLOC(r, used, a->n_keywords + 1);
    TRY(scope_new(r, m->scope, &r->scope));
    TRY(bind_parameters(r, m, a, used, &found_caller));
    TRY(bind_special(r, m, a, used, found_caller));
    r->autoescape = m->autoescape;
    text_sink s = SINK(r), *saved_out = r->out;
    r->out = &s;
    TRY(exec_list(r, &m->node->body));
    r->out = saved_out;
    r->autoescape = autoescape;
    r->scope = saved;
    r->depth--;
    TRY(sink_finish(&s, out));
    if (autoescape) out->flags |= VALUE_SAFE;
    return 0;
}

static int exec_macro(render *r, const node *n) {
    value m;
    TRY(macro_new(r, &n->atom->name, n, &m));
    return scope_set(r, r->scope, n->atom, &m);
}

static int exec_call_block(render *r, const node *n) {
    value caller, result, name = {.type = V_NONE}; /* as in the original */
    TRY(macro_new(r, &name, n, &caller));
    TRY(eval_call(r, n->a, &caller, &result));
    TRY(value_print(r->out, &result));
    return check_output(r);
}

/* ---- blocks and the rest ---- */

static int exec_block(render *r, const node *n) {
    if (n->flags & NODE_REQUIRED) RAISE(r, "Required block '%.*s' not found", (int)n->atom->name.n_bytes, n->atom->name.text);
    return exec_scoped(r, &n->body, n->flags & NODE_SCOPED ? r->scope : r->root);
}

int jinja_block_call(render *r, const jinja_block *b, value *out) {
    TRY(render_enter(r));
    TRY(exec_capture(r, &b->node->body, r->root, out));
    r->depth--;
    return 0;
}

static int exec_generation(render *r, const node *n) {
    return exec_scoped(r, &n->body, r->scope);
}

static int exec_break(render *r, const node *n) {
    (void)r, (void)n;
    return FLOW_BREAK;
}

static int exec_continue(render *r, const node *n) {
    (void)r, (void)n;
    return FLOW_CONTINUE;
}

static int exec_loader(render *r, const node *n) {
    RAISE(r, "'%.*s' is not available: a chat template cannot load other templates", (int)n->constant.n_bytes,
          n->constant.text);
}

static int (*const executors[])(render *r, const node *n) = {
    [N_DATA] = exec_data,
    [N_PRINT] = exec_print,
    [N_IF] = exec_if,
    [N_FOR] = exec_for,
    [N_SET] = exec_set,
    [N_SET_BLOCK] = exec_set_block,
    [N_MACRO] = exec_macro,
    [N_CALL_BLOCK] = exec_call_block,
    [N_FILTER_BLOCK] = exec_filter_block,
    [N_WITH] = exec_with,
    [N_AUTOESCAPE] = exec_autoescape,
    [N_BLOCK] = exec_block,
    [N_GENERATION] = exec_generation,
    [N_BREAK] = exec_break,
    [N_CONTINUE] = exec_continue,
    [N_LOADER] = exec_loader,
};

static int exec(render *r, const node *n) {
    TRY(render_enter(r));
    r->line = n->line;
    int result = executors[n->kind](r, n);
    r->depth--;
    return result;
}
