/* The tests of "is". */
#include "chat/jinja_builtin.h"
#include "chat/jinja_text.h"

#define TEST(name) static int name(render *r, const value *self, const value *argv, const call_arguments *all, value *out)
#define UNUSED_ALL (void)r, (void)self, (void)argv, (void)all, (void)out
#define SIMPLE_TEST(name, condition)                                                                                           \
    TEST(name) {                                                                                                               \
        UNUSED_ALL;                                                                                                            \
        *out = value_bool(condition);                                                                                          \
        return 0;                                                                                                              \
    }

static bool is_integer(const value *v) {
    return v->type == V_INT || (v->type == V_FLOAT && (v->flags & VALUE_INTEGRAL));
}
static bool is_callable(const value *v) {
    return v->type == V_MACRO || v->type == V_METHOD || v->type == V_FUNCTION || v->type == V_LOOP || v->type == V_JOINER ||
           v->type == V_BLOCK || v->type == V_UNDEFINED;
}
static bool is_sequence(const value *v) {
    return v->type == V_STRING || v->type == V_LIST || v->type == V_TUPLE || v->type == V_RANGE || v->type == V_DICT ||
           v->type == V_UNDEFINED;
}

SIMPLE_TEST(test_defined, self->type != V_UNDEFINED)
SIMPLE_TEST(test_undefined, self->type == V_UNDEFINED)
SIMPLE_TEST(test_none, self->type == V_NONE)
SIMPLE_TEST(test_boolean, self->type == V_BOOL)
SIMPLE_TEST(test_true, self->type == V_BOOL && self->boolean)
SIMPLE_TEST(test_false, self->type == V_BOOL && !self->boolean)
SIMPLE_TEST(test_integer, is_integer(self))
SIMPLE_TEST(test_float, self->type == V_FLOAT && !(self->flags & VALUE_INTEGRAL))
SIMPLE_TEST(test_number, self->type == V_INT || self->type == V_FLOAT || self->type == V_BOOL)
SIMPLE_TEST(test_string, self->type == V_STRING)
SIMPLE_TEST(test_mapping, self->type == V_DICT)
SIMPLE_TEST(test_sequence, is_sequence(self))
SIMPLE_TEST(test_iterable, value_iterable(self))
SIMPLE_TEST(test_callable, is_callable(self))
SIMPLE_TEST(test_escaped, self->type == V_STRING && (self->flags & VALUE_SAFE))

static int remainder_is(render *r, const value *v, int64_t divisor, int64_t wanted, value *out) {
    value remainder, by = value_int(divisor), compare = value_int(wanted);
    bool equal;
    TRY(value_arithmetic(r, OP_MOD, v, &by, &remainder));
    TRY(value_equal(r, &remainder, &compare, &equal));
    *out = value_bool(equal);
    return 0;
}

TEST(test_odd) {
    UNUSED_ALL;
    return remainder_is(r, self, 2, 1, out);
}
TEST(test_even) {
    UNUSED_ALL;
    return remainder_is(r, self, 2, 0, out);
}

TEST(test_divisibleby) {
    value remainder, zero = value_int(0);
    bool equal;
    UNUSED_ALL;
    TRY(value_arithmetic(r, OP_MOD, self, &argv[0], &remainder));
    TRY(value_equal(r, &remainder, &zero, &equal));
    *out = value_bool(equal);
    return 0;
}

static int text_class_is(render *r, const value *v, text_class c, value *out) {
    value text;
    TRY(value_to_text(r, v, &text));
    *out = value_bool(text_is(text.text, text.n_bytes, c));
    return render_charge(r, text.n_bytes / 4);
}

TEST(test_lower) {
    UNUSED_ALL;
    return text_class_is(r, self, CLASS_LOWER, out);
}
TEST(test_upper) {
    UNUSED_ALL;
    return text_class_is(r, self, CLASS_UPPER, out);
}


/* Looked up in a dict by the original, which a list or a dict cannot be. */
TEST(test_filter) {
    uint64_t hash;
    UNUSED_ALL;
    TRY(value_hash(r, self, &hash));
    *out = value_bool(is_string(self) && filter_find(self->text, self->n_bytes));
    return 0;
}
TEST(test_test) {
    uint64_t hash;
    UNUSED_ALL;
    TRY(value_hash(r, self, &hash));
    *out = value_bool(is_string(self) && test_find(self->text, self->n_bytes));
    return 0;
}

/* Identity: of the same kind and equal for what cannot be told apart otherwise, the same object for containers. */
TEST(test_sameas) {
    bool same = self->type == argv[0].type;
    UNUSED_ALL;
    if (same && (is_listlike(self) || self->type >= V_RANGE))
        same = self->list == argv[0].list;
    else if (same)
        TRY(value_equal(r, self, &argv[0], &same));
    *out = value_bool(same);
    return 0;
}

TEST(test_in) {
    bool found;
    UNUSED_ALL;
    TRY(value_contains(r, &argv[0], self, &found));
    *out = value_bool(found);
    return 0;
}

TEST(test_eq) {
    bool equal;
    UNUSED_ALL;
    TRY(value_equal(r, self, &argv[0], &equal));
    *out = value_bool(equal);
    return 0;
}

TEST(test_ne) {
    TRY(test_eq(r, self, argv, all, out));
    *out = value_bool(!out->boolean);
    return 0;
}

#define ORDER_TEST(name, op, condition)                                                                                        \
    TEST(name) {                                                                                                               \
        int order;                                                                                                             \
        UNUSED_ALL;                                                                                                            \
        TRY(value_order(r, self, &argv[0], op, &order));                                                                       \
        *out = value_bool(order != 2 && (condition));                                                                          \
        return 0;                                                                                                              \
    }
ORDER_TEST(test_gt, ">", order > 0)
ORDER_TEST(test_ge, ">=", order >= 0)
ORDER_TEST(test_lt, "<", order < 0)
ORDER_TEST(test_le, "<=", order <= 0)

static const jinja_builtin rows[] = {
    {"defined", test_defined, "", 0},   {"undefined", test_undefined, "", 0}, {"none", test_none, "", 0},
    {"boolean", test_boolean, "", 0},   {"true", test_true, "", 0},           {"false", test_false, "", 0},
    {"integer", test_integer, "", 0},   {"float", test_float, "", 0},         {"number", test_number, "", 0},
    {"string", test_string, "", 0},     {"mapping", test_mapping, "", 0},     {"sequence", test_sequence, "", 0},
    {"iterable", test_iterable, "", 0}, {"callable", test_callable, "", 0},   {"escaped", test_escaped, "", 0},
    {"odd", test_odd, "", 0},           {"even", test_even, "", 0},           {"divisibleby", test_divisibleby, "num", 1},
    {"lower", test_lower, "", 0},       {"upper", test_upper, "", 0},         {"filter", test_filter, "", 0},
    {"test", test_test, "", 0},         {"sameas", test_sameas, "other", 1},  {"in", test_in, "seq", 1},
    {"==", test_eq, "other", 1},        {"eq", test_eq, "other", 1},          {"equalto", test_eq, "other", 1},
    {"!=", test_ne, "other", 1},        {"ne", test_ne, "other", 1},          {">", test_gt, "other", 1},
    {"gt", test_gt, "other", 1},        {"greaterthan", test_gt, "other", 1}, {">=", test_ge, "other", 1},
    {"ge", test_ge, "other", 1},        {"<", test_lt, "other", 1},           {"lt", test_lt, "other", 1},
    {"lessthan", test_lt, "other", 1},  {"<=", test_le, "other", 1},          {"le", test_le, "other", 1},
};

static const builtin_table table = {rows, sizeof rows / sizeof rows[0]};

const jinja_builtin *test_find(const char *name, size_t n_bytes) {
    return n_bytes ? builtin_find(&table, name, n_bytes) : NULL;
}
