/* Decoding of the OpenAI surface's requests: what is accepted and what it means, what is refused and which field is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/openai_request.h"
#include "test_openai_fake.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

enum { N_CTX = 64 };

static openai_context context_for(fake_template mode) {
    openai_context context;
    static weir_grammars *grammars; /* one for all tests; closed at exit */
    assert_int_equal(openai_context_init(&context, fake_model(), fake_chat(mode), N_CTX), 0);
    if (!grammars) assert_int_equal(weir_grammars_open(&grammars, fake_model(), NULL), 0);
    context.grammars = grammars;
    return context;
}

/* Decodes and, when that went well, tokenises. */
static int read_request(openai_request *request, const openai_context *context, openai_endpoint endpoint, const char *body,
                        openai_error *error) {
    *error = (openai_error){0};
    int result = openai_request_decode(request, context, endpoint, body, strlen(body), error);
    return result < 0 ? result : openai_request_tokenize(request, context, error);
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------ */

typedef struct refusal {
    openai_endpoint endpoint;
    const char *body, *code, *param;
} refusal;

#define CHAT(fields, code, param)                                                                                              \
    { OPENAI_CHAT, "{" HI "," fields "}", code, param }
#define COMPLETION(fields, code, param)                                                                                        \
    { OPENAI_COMPLETION, "{\"prompt\":\"hi\"," fields "}", code, param }
#define MESSAGES(messages, code, param)                                                                                        \
    { OPENAI_CHAT, "{\"messages\":" messages "}", code, param }
#define PROMPT(prompt, code, param)                                                                                            \
    { OPENAI_COMPLETION, "{\"prompt\":" prompt "}", code, param }

static const refusal refusals[] = {
    /* the body */
    {OPENAI_CHAT, "", "invalid_json", ""},
    {OPENAI_CHAT, "{", "invalid_json", ""},
    {OPENAI_CHAT, "nonsense", "invalid_json", ""},
    {OPENAI_CHAT, "[]", "invalid_type", ""},
    {OPENAI_CHAT, "null", "invalid_type", ""},
    {OPENAI_CHAT, "\"text\"", "invalid_type", ""},
    {OPENAI_CHAT, "17", "invalid_type", ""},
    {OPENAI_CHAT, "{" HI "} trailing", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",}", "invalid_json", ""},
    {OPENAI_CHAT, "{'messages':[]}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"n\":1,\"n\":2}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"temperature\":NaN}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"temperature\":Infinity}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"temperature\":1e999}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"temperature\":.5}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"temperature\":+1}", "invalid_json", ""},
    {OPENAI_CHAT, "{" HI ",\"seed\":0x10}", "invalid_json", ""},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}", "invalid_json", ""},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xed\xa0\x80\"}]}", "invalid_json", ""},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}", "invalid_json", ""},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"line\nbreak\"}]}", "invalid_json", ""},
    {OPENAI_CHAT, "{\"a\\u0000b\":1," HI "}", "invalid_json", ""},
    {OPENAI_CHAT, "{}", "missing_required_parameter", "messages"},
    {OPENAI_COMPLETION, "{}", "missing_required_parameter", "prompt"},
    /* messages */
    MESSAGES("null", "missing_required_parameter", "messages"),
    MESSAGES("\"hi\"", "invalid_type", "messages"),
    MESSAGES("{}", "invalid_type", "messages"),
    MESSAGES("5", "invalid_type", "messages"),
    MESSAGES("true", "invalid_type", "messages"),
    MESSAGES("[]", "invalid_value", "messages"),
    MESSAGES("[123]", "invalid_type", "messages[0]"),
    MESSAGES("[null]", "invalid_type", "messages[0]"),
    MESSAGES("[[]]", "invalid_type", "messages[0]"),
    MESSAGES("[{\"content\":\"x\"}]", "invalid_type", "messages[0].role"),
    MESSAGES("[{\"role\":5,\"content\":\"x\"}]", "invalid_type", "messages[0].role"),
    MESSAGES("[{\"role\":null,\"content\":\"x\"}]", "invalid_type", "messages[0].role"),
    MESSAGES("[{\"role\":\"\",\"content\":\"x\"}]", "invalid_value", "messages[0].role"),
    MESSAGES("[{\"role\":\"user\"}]", "missing_required_parameter", "messages[0].content"),
    MESSAGES("[{\"role\":\"user\",\"content\":null}]", "missing_required_parameter", "messages[0].content"),
    MESSAGES("[{\"role\":\"user\",\"content\":5}]", "invalid_type", "messages[0].content"),
    MESSAGES("[{\"role\":\"user\",\"content\":{}}]", "invalid_type", "messages[0].content"),
    MESSAGES("[{\"role\":\"user\",\"content\":false}]", "invalid_type", "messages[0].content"),
    MESSAGES("[{\"role\":\"user\",\"content\":[5]}]", "invalid_type", "messages[0].content[0]"),
    MESSAGES("[{\"role\":\"user\",\"content\":[{}]}]", "invalid_type", "messages[0].content[0]"),
    MESSAGES("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "invalid_type", "messages[0].content[0].text"),
    MESSAGES("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":5}]}]", "invalid_type",
             "messages[0].content[0].text"),
    MESSAGES("[{\"role\":\"user\",\"content\":[{\"type\":\"poem\",\"text\":\"x\"}]}]", "invalid_value",
             "messages[0].content[0].type"),
    MESSAGES(
        "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":\"image_url\",\"image_url\":{\"url\":"
        "\"data:image/png;base64,AA\"}}]}]",
        "not_supported", "messages[0].content[1]"),
    MESSAGES("[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]", "not_supported", "messages[0].content[0]"),
    MESSAGES("[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},{\"role\":\"assistant\","
             "\"content\":\"c\"}]",
             "invalid_value", "messages"),
    MESSAGES("[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":5}]", "invalid_type", "messages[0].tool_calls"),
    MESSAGES("[{\"role\":\"assistant\",\"tool_calls\":[5]}]", "invalid_type", "messages[0].tool_calls[0].function.name"),
    MESSAGES("[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":7}}]}]", "invalid_type",
             "messages[0].tool_calls[0].function.arguments"),
    MESSAGES("[{\"role\":\"user\",\"content\":\"0123456789012345678901234567890123456789012345678901234567890123456789\"}]",
             "context_length_exceeded", "messages"),
    /* prompts */
    PROMPT("null", "missing_required_parameter", "prompt"),
    PROMPT("5", "invalid_type", "prompt"),
    PROMPT("{}", "invalid_type", "prompt"),
    PROMPT("true", "invalid_type", "prompt"),
    PROMPT("[]", "invalid_value", "prompt"),
    PROMPT("[[]]", "invalid_value", "prompt[0]"),
    PROMPT("[\"a\",null]", "invalid_type", "prompt[1]"),
    PROMPT("[\"a\",{}]", "invalid_type", "prompt[1]"),
    PROMPT("[1,[2]]", "invalid_type", "prompt"),
    PROMPT("[[1],[[2]]]", "invalid_type", "prompt[1]"),
    PROMPT("[1,2.5]", "invalid_type", "prompt"),
    PROMPT("[-1]", "invalid_value", "prompt"),
    PROMPT("[259]", "invalid_value", "prompt"),
    PROMPT("[4,9223372036854775807]", "invalid_value", "prompt"),
    PROMPT("[4,99999999999999999999999]", "invalid_type", "prompt"),
    PROMPT("[[5],[259]]", "invalid_value", "prompt[1]"),
    PROMPT("\"0123456789012345678901234567890123456789012345678901234567890123456789\"", "context_length_exceeded", "prompt"),
    /* numbers: wrong types */
    CHAT("\"temperature\":\"0.5\"", "invalid_type", "temperature"),
    CHAT("\"temperature\":true", "invalid_type", "temperature"),
    CHAT("\"temperature\":[]", "invalid_type", "temperature"),
    CHAT("\"temperature\":{}", "invalid_type", "temperature"),
    CHAT("\"top_p\":\"1\"", "invalid_type", "top_p"),
    CHAT("\"min_p\":false", "invalid_type", "min_p"),
    CHAT("\"presence_penalty\":\"x\"", "invalid_type", "presence_penalty"),
    CHAT("\"frequency_penalty\":[1]", "invalid_type", "frequency_penalty"),
    CHAT("\"repeat_penalty\":{}", "invalid_type", "repeat_penalty"),
    CHAT("\"repetition_penalty\":\"1.1\"", "invalid_type", "repetition_penalty"),
    CHAT("\"top_k\":1.5", "invalid_type", "top_k"),
    CHAT("\"top_k\":\"40\"", "invalid_type", "top_k"),
    CHAT("\"max_tokens\":\"5\"", "invalid_type", "max_tokens"),
    CHAT("\"max_tokens\":2.5", "invalid_type", "max_tokens"),
    CHAT("\"max_completion_tokens\":[5]", "invalid_type", "max_completion_tokens"),
    CHAT("\"seed\":\"5\"", "invalid_type", "seed"),
    CHAT("\"seed\":1.5", "invalid_type", "seed"),
    CHAT("\"n\":\"2\"", "invalid_type", "n"),
    CHAT("\"n\":true", "invalid_type", "n"),
    /* numbers: ranges */
    CHAT("\"temperature\":-0.1", "invalid_value", "temperature"),
    CHAT("\"temperature\":2.0001", "invalid_value", "temperature"),
    CHAT("\"temperature\":1e300", "invalid_value", "temperature"),
    CHAT("\"top_p\":1.1", "invalid_value", "top_p"),
    CHAT("\"top_p\":-1", "invalid_value", "top_p"),
    CHAT("\"min_p\":2", "invalid_value", "min_p"),
    CHAT("\"presence_penalty\":2.5", "invalid_value", "presence_penalty"),
    CHAT("\"frequency_penalty\":-3", "invalid_value", "frequency_penalty"),
    CHAT("\"repeat_penalty\":0", "invalid_value", "repeat_penalty"),
    CHAT("\"repetition_penalty\":-1", "invalid_value", "repetition_penalty"),
    CHAT("\"top_k\":-2", "invalid_value", "top_k"),
    CHAT("\"top_k\":2147483648", "invalid_value", "top_k"),
    CHAT("\"max_tokens\":0", "invalid_value", "max_tokens"),
    CHAT("\"max_tokens\":-2", "invalid_value", "max_tokens"),
    CHAT("\"max_tokens\":1e12", "invalid_value", "max_tokens"),
    CHAT("\"max_tokens\":99999999999999999999", "invalid_value", "max_tokens"),
    CHAT("\"seed\":9223372036854775808", "invalid_value", "seed"),
    CHAT("\"seed\":-1e300", "invalid_value", "seed"),
    CHAT("\"n\":0", "invalid_value", "n"),
    CHAT("\"n\":129", "invalid_value", "n"),
    CHAT("\"n\":-1", "invalid_value", "n"),
    COMPLETION("\"best_of\":3", "not_supported", "best_of"),
    {OPENAI_COMPLETION, "{\"n\":128,\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", "invalid_value", "prompt"},
    /* flags */
    CHAT("\"stream\":1", "invalid_type", "stream"),
    CHAT("\"stream\":\"true\"", "invalid_type", "stream"),
    CHAT("\"ignore_eos\":\"yes\"", "invalid_type", "ignore_eos"),
    CHAT("\"stream_options\":5", "invalid_type", "stream_options"),
    CHAT("\"stream_options\":{\"include_usage\":1}", "invalid_type", "stream_options.include_usage"),
    CHAT("\"model\":5", "invalid_type", "model"),
    COMPLETION("\"echo\":\"x\"", "invalid_type", "echo"),
    COMPLETION("\"echo\":true,\"logprobs\":1", "not_supported", "echo"),
    COMPLETION("\"suffix\":\"x\"", "not_supported", "suffix"),
    COMPLETION("\"suffix\":5", "invalid_type", "suffix"),
    /* log probabilities */
    CHAT("\"logprobs\":5", "invalid_type", "logprobs"),
    CHAT("\"logprobs\":true,\"top_logprobs\":21", "invalid_value", "top_logprobs"),
    CHAT("\"logprobs\":true,\"top_logprobs\":-1", "invalid_value", "top_logprobs"),
    CHAT("\"logprobs\":true,\"top_logprobs\":\"5\"", "invalid_type", "top_logprobs"),
    CHAT("\"top_logprobs\":5", "invalid_value", "top_logprobs"),
    COMPLETION("\"logprobs\":true", "invalid_type", "logprobs"),
    COMPLETION("\"logprobs\":21", "invalid_value", "logprobs"),
    /* stop */
    CHAT("\"stop\":5", "invalid_type", "stop"),
    CHAT("\"stop\":{}", "invalid_type", "stop"),
    CHAT("\"stop\":[5]", "invalid_type", "stop[0]"),
    CHAT("\"stop\":[\"a\",null]", "invalid_type", "stop[1]"),
    CHAT("\"stop\":\"a\\u0000b\"", "invalid_value", "stop"),
    CHAT("\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\",\"13\",\"14\",\"15\",\"16\","
         "\"17\"]",
         "invalid_value", "stop"),
    /* logit_bias */
    CHAT("\"logit_bias\":5", "invalid_type", "logit_bias"),
    CHAT("\"logit_bias\":{\"word\":1}", "invalid_value", "logit_bias.word"),
    CHAT("\"logit_bias\":{\"\":1}", "invalid_value", "logit_bias."),
    CHAT("\"logit_bias\":{\" 5\":1}", "invalid_value", "logit_bias. 5"),
    CHAT("\"logit_bias\":{\"5x\":1}", "invalid_value", "logit_bias.5x"),
    CHAT("\"logit_bias\":{\"-1\":1}", "invalid_value", "logit_bias.-1"),
    CHAT("\"logit_bias\":{\"259\":1}", "invalid_value", "logit_bias.259"),
    CHAT("\"logit_bias\":{\"99999999999999999999\":1}", "invalid_value", "logit_bias.99999999999999999999"),
    CHAT("\"logit_bias\":{\"5\":\"1\"}", "invalid_type", "logit_bias.5"),
    CHAT("\"logit_bias\":{\"5\":true}", "invalid_type", "logit_bias.5"),
    CHAT("\"logit_bias\":{\"5\":101}", "invalid_value", "logit_bias.5"),
    CHAT("\"logit_bias\":[5]", "invalid_type", "logit_bias[0]"),
    CHAT("\"logit_bias\":[[5]]", "invalid_type", "logit_bias[0]"),
    CHAT("\"logit_bias\":[[5,1,2]]", "invalid_type", "logit_bias[0]"),
    CHAT("\"logit_bias\":[[null,1]]", "invalid_type", "logit_bias[0]"),
    CHAT("\"logit_bias\":[[4,1],[999,1]]", "invalid_value", "logit_bias[1]"),
    /* what cannot be done yet */
    CHAT("\"response_format\":\"text\"", "invalid_type", "response_format"),
    CHAT("\"response_format\":{}", "invalid_value", "response_format.type"),
    CHAT("\"response_format\":{\"type\":\"xml\"}", "invalid_value", "response_format.type"),
    CHAT("\"response_format\":{\"type\":5}", "invalid_value", "response_format.type"),
    CHAT("\"response_format\":{\"type\":\"json_schema\"}", "missing_required_parameter", "response_format.json_schema"),
    CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":[]}", "invalid_type", "response_format.json_schema"),
    CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}", "missing_required_parameter",
         "response_format.json_schema.schema"),
    CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{},\"strict\":1}}", "invalid_type",
         "response_format.json_schema.strict"),
    CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"type\":\"objekt\"}}}", "invalid_value",
         "response_format.json_schema.schema"),
    CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"contains\":{\"type\":\"string\"},\"uniqueItems\":true,\"type\":\"array\"}}}",
         "not_supported", "response_format.json_schema.schema"),
    CHAT("\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":5}}", "invalid_type", "response_format.json_schema.schema"),
    CHAT("\"grammar\":\"root ::= x\"", "invalid_value", "grammar"),
    CHAT("\"grammar\":5", "invalid_type", "grammar"),
    CHAT("\"json_schema\":[]", "invalid_type", "json_schema"),
    COMPLETION("\"guided_regex\":\"(a\"", "invalid_value", "guided_regex"),
    COMPLETION("\"guided_regex\":\"(?=a)\"", "not_supported", "guided_regex"),
    COMPLETION("\"guided_choice\":[]", "invalid_value", "guided_choice"),
    COMPLETION("\"guided_choice\":\"a\"", "invalid_type", "guided_choice"),
    COMPLETION("\"guided_choice\":[1]", "invalid_type", "guided_choice"),
    COMPLETION("\"guided_json\":{},\"guided_regex\":\"a\"", "invalid_value", "guided_regex"),
    COMPLETION("\"structured_outputs\":{\"regex\":5}", "invalid_type", "structured_outputs.regex"),
    COMPLETION("\"structured_outputs\":{\"structural_tag\":{}}", "not_supported", "structured_outputs.structural_tag"),
    /* samplers */
    CHAT("\"samplers\":[\"top_k\",\"topk\"]", "invalid_value", "samplers[1]"),
    CHAT("\"samplers\":[5]", "invalid_value", "samplers[0]"),
    CHAT("\"samplers\":[]", "invalid_value", "samplers"),
    CHAT("\"samplers\":5", "invalid_type", "samplers"),
    CHAT("\"samplers\":\"kz\"", "invalid_value", "samplers"),
    CHAT("\"mirostat\":3", "invalid_value", "mirostat"),
    CHAT("\"dry_base\":0.5", "invalid_value", "dry_base"),
    CHAT("\"dry_sequence_breakers\":\"x\"", "invalid_type", "dry_sequence_breakers"),
    CHAT("\"dry_sequence_breakers\":[1]", "invalid_type", "dry_sequence_breakers[0]"),
    CHAT("\"xtc_threshold\":2", "invalid_value", "xtc_threshold"),
    CHAT("\"functions\":[]", "not_supported", "functions"),
    CHAT("\"tools\":5", "invalid_type", "tools"),
    CHAT("\"tools\":[5]", "invalid_value", "tools[0].type"),
    CHAT("\"tools\":[{\"type\":\"function\",\"function\":{}}]", "invalid_type", "tools[0].function.name"),
    CHAT("\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":[]}}]", "invalid_type", "tools[0].function.parameters"),
    CHAT("\"tool_choice\":\"required\"", "invalid_value", "tool_choice"),
    CHAT("\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", "invalid_value", "tool_choice.function.name"),
    CHAT("\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"array\",\"uniqueItems\":true}}}],\"tool_choice\":"
         "\"required\"",
         "not_supported", "tools"),
    CHAT("\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"tool_choice\":\"required\",\"grammar\":\"root ::= [a]\"", "invalid_value",
         "tool_choice"),
    CHAT("\"tool_choice\":\"never\"", "invalid_value", "tool_choice"),
    CHAT("\"tool_choice\":5", "invalid_value", "tool_choice"),
    CHAT("\"chat_template_kwargs\":[]", "invalid_type", "chat_template_kwargs"),
    CHAT("\"documents\":{}", "invalid_type", "documents"),
    CHAT("\"reasoning_effort\":5", "invalid_type", "reasoning_effort"),
    CHAT("\"add_generation_prompt\":5", "invalid_type", "add_generation_prompt"),
    CHAT("\"continue_final_message\":true", "invalid_value", "continue_final_message"),
    CHAT("\"continue_final_message\":true,\"add_generation_prompt\":true", "invalid_value", "continue_final_message"),
};

static void refusals_name_the_field(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    for (size_t i = 0; i < COUNT(refusals); i++) {
        const refusal *r = &refusals[i];
        openai_request request;
        openai_error error;
        int result = read_request(&request, &context, r->endpoint, r->body, &error);
        openai_request_free(&request);
        if (result >= 0) fail_msg("accepted: %s", r->body);
        if (error.status != 400 || error.n_problems != 1)
            fail_msg("status %d, %zu problems: %s", error.status, error.n_problems, r->body);
        if (strcmp(error.problems[0].code, r->code) || strcmp(error.problems[0].param, r->param))
            fail_msg("%s: code '%s', param '%s', message '%s'", r->body, error.problems[0].code, error.problems[0].param,
                     error.problems[0].message);
        assert_true(error.problems[0].message[0]);
    }
    assert_true(COUNT(refusals) >= 100);
}

/* ---- accepted requests --------------------------------------------------------------------------------------------------- */

static void describe(const openai_request *r, char *out, size_t capacity) {
    const weir_sampling *s = &r->job.sampling;
    size_t n = 0;
    n += (size_t)snprintf(out + n, capacity - n,
                          "max=%d temp=%g top_k=%d top_p=%g min_p=%g rep=%g freq=%g pres=%g last=%d n=%d top=%d %s%s%s%s%s",
                          r->job.max_tokens, (double)s->temperature, s->top_k, (double)s->top_p, (double)s->min_p,
                          (double)s->repetition_penalty, (double)s->frequency_penalty, (double)s->presence_penalty,
                          s->penalty_last_n, r->n, r->n_top, r->stream ? "stream " : "", r->include_usage ? "usage " : "",
                          r->echo ? "echo " : "", r->job.ignore_eos ? "ignore_eos " : "", r->job.special ? "special " : "");
    for (size_t i = 0; i < r->job.n_stop; i++) n += (size_t)snprintf(out + n, capacity - n, "stop=%s ", r->job.stop[i]);
    for (size_t i = 0; i < s->n_logit_bias; i++)
        n += (size_t)snprintf(out + n, capacity - n, "bias=%d:%g ", s->logit_bias[i].token, (double)s->logit_bias[i].bias);
    for (size_t p = 0; p < r->n_prompts; p++) {
        n += (size_t)snprintf(out + n, capacity - n, "prompt=");
        for (size_t i = 0; i < r->prompts[p].n_tokens; i++) {
            int32_t token = r->prompts[p].tokens[i];
            if (token > FAKE_BYTE + ' ')
                n += (size_t)snprintf(out + n, capacity - n, "%c", token - FAKE_BYTE);
            else
                n += (size_t)snprintf(out + n, capacity - n, "<%d>", token);
        }
        n += (size_t)snprintf(out + n, capacity - n, ".");
    }
}

static const struct {
    openai_endpoint endpoint;
    const char *body, *expected; /* expected: part of the description */
} accepted[] = {
    {OPENAI_CHAT, "{" HI "}",
     "max=-1 temp=0.8 top_k=40 top_p=0.95 min_p=0.05 rep=1 freq=0 pres=0 last=64 n=1 top=-1 prompt=<1>user:hi<13>assistant:."},
    {OPENAI_COMPLETION, "{\"prompt\":\"hi\"}",
     "max=16 temp=0.8 top_k=40 top_p=0.95 min_p=0.05 rep=1 freq=0 pres=0 last=64 n=1 top=-1 prompt=<1>hi."},
    {OPENAI_CHAT, "{" HI ",\"temperature\":0,\"top_k\":-1,\"top_p\":0,\"min_p\":1}", "temp=0 top_k=0 top_p=0 min_p=1 "},
    {OPENAI_CHAT, "{" HI ",\"temperature\":2,\"top_k\":0}", "temp=2 top_k=0 "},
    {OPENAI_CHAT,
     "{" HI ",\"temperature\":null,\"top_p\":null,\"n\":null,\"stop\":null,\"seed\":null,\"stream\":null,"
     "\"logit_bias\":null,\"tools\":null,\"max_tokens\":null,\"response_format\":null,\"stream_options\":null}",
     "max=-1 temp=0.8 "},
    {OPENAI_CHAT, "{" HI ",\"max_tokens\":5}", "max=5 "},
    {OPENAI_CHAT, "{" HI ",\"max_tokens\":5.0}", "max=5 "},
    {OPENAI_CHAT, "{" HI ",\"max_tokens\":5,\"max_completion_tokens\":7}", "max=7 "},
    {OPENAI_CHAT, "{" HI ",\"n_predict\":9}", "max=9 "},
    {OPENAI_CHAT, "{" HI ",\"max_tokens\":-1}", "max=-1 "},
    {OPENAI_CHAT, "{" HI ",\"max_tokens\":2147483647}", "max=2147483647 "},
    {OPENAI_COMPLETION, "{\"prompt\":\"hi\",\"max_tokens\":0}", "max=0 "},
    {OPENAI_CHAT, "{" HI ",\"repeat_penalty\":1.5}", "rep=1.5 "},
    {OPENAI_CHAT, "{" HI ",\"repetition_penalty\":0.5,\"presence_penalty\":-2,\"frequency_penalty\":2,\"repeat_last_n\":-1}",
     "rep=0.5 freq=2 pres=-2 last=-1 "},
    {OPENAI_CHAT, "{" HI ",\"n\":3,\"best_of\":3}", "n=3 "},
    {OPENAI_CHAT, "{" HI ",\"logprobs\":true}", "top=0 "},
    {OPENAI_CHAT, "{" HI ",\"logprobs\":true,\"top_logprobs\":20}", "top=20 "},
    {OPENAI_CHAT, "{" HI ",\"logprobs\":false}", "top=-1 "},
    {OPENAI_COMPLETION, "{\"prompt\":\"hi\",\"logprobs\":0}", "top=0 "},
    {OPENAI_COMPLETION, "{\"prompt\":\"hi\",\"logprobs\":5}", "top=5 "},
    {OPENAI_CHAT, "{" HI ",\"stream\":true,\"stream_options\":{\"include_usage\":true,\"other\":1}}", "stream usage "},
    {OPENAI_CHAT, "{" HI ",\"ignore_eos\":true,\"skip_special_tokens\":false}", "ignore_eos special "},
    {OPENAI_COMPLETION, "{\"prompt\":\"hi\",\"echo\":true,\"suffix\":\"\"}", "echo "},
    {OPENAI_CHAT, "{" HI ",\"stop\":\"\\n\\n\"}", "stop=\n\n "},
    {OPENAI_CHAT, "{" HI ",\"stop\":[\"a\",\"\",\"b\"]}", "stop=a stop=b "},
    {OPENAI_CHAT, "{" HI ",\"stop\":[]}", "top=-1 prompt="},
    {OPENAI_CHAT, "{" HI ",\"stop\":\"\"}", "top=-1 prompt="},
    {OPENAI_CHAT, "{" HI ",\"logit_bias\":{\"5\":-100,\"6\":1.5}}", "bias=5:-inf bias=6:1.5 "},
    {OPENAI_CHAT, "{" HI ",\"logit_bias\":[[5,false],[6,2],[\"AB\",-1]]}", "bias=5:-inf bias=6:2 bias=68:-1 bias=69:-1 "},
    {OPENAI_CHAT, "{" HI ",\"logit_bias\":{}}", "top=-1 prompt="},
    {OPENAI_CHAT, "{" HI ",\"response_format\":{\"type\":\"text\"},\"tool_choice\":\"auto\",\"tools\":[]}", "prompt="},
    {OPENAI_CHAT, "{" HI ",\"unknown\":{\"deep\":[1,2,{\"x\":null}]},\"user\":\"me\",\"metadata\":5}", "max=-1 "},
    {OPENAI_CHAT, "{" HI ",\"unknown\":123456789012345678901234567890}", "max=-1 "},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}", "prompt=<1>system:x<13>assistant:."},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":"
     "\"b\"}]}]}",
     "prompt=<1>user:a<13>b<13>assistant:."},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "prompt=<1>user:<13>assistant:."},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"The\"}]}",
     "prompt=<1>user:a<13>assistant:The."},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"The\"}],"
     "\"continue_final_message\":true,\"add_generation_prompt\":false}",
     "prompt=<1>user:a<13>assistant:The."},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"The\"}],"
     "\"add_generation_prompt\":true}",
     "prompt=<1>user:a<13>assistant:The<13>assistant:."},
    {OPENAI_CHAT, "{" HI ",\"add_generation_prompt\":false}", "prompt=<1>user:hi<13>."},
    {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"</s>\"}]}", "prompt=<1>user:<2><13>assistant:."},
    {OPENAI_COMPLETION, "{\"prompt\":\"<s>hi\"}", "prompt=<1>hi."},
    {OPENAI_COMPLETION, "{\"prompt\":\"\"}", "prompt=<1>."},
    {OPENAI_COMPLETION, "{\"prompt\":\"\\u0000a\"}", "prompt=<1><3>a."},
    {OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"b\"]}", "prompt=<1>a.prompt=<1>b."},
    {OPENAI_COMPLETION, "{\"prompt\":[68,69]}", "prompt=AB."},
    {OPENAI_COMPLETION, "{\"prompt\":[68.0,69]}", "prompt=AB."},
    {OPENAI_COMPLETION, "{\"prompt\":[[68],[69,70]]}", "prompt=A.prompt=BC."},
    {OPENAI_COMPLETION, "{\"prompt\":[68,\"b\",69]}", "prompt=AbB."},
    {OPENAI_COMPLETION, "{\"prompt\":[\"a\",[68,\"b\"]]}", "prompt=<1>a.prompt=Ab."},
    {OPENAI_COMPLETION, "{\"prompt\":[[\"a\",68]]}", "prompt=<1>aA."},
};

static void accepted_requests_mean_what_they_say(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    for (size_t i = 0; i < COUNT(accepted); i++) {
        char description[2048];
        openai_request request;
        openai_error error;
        int result = read_request(&request, &context, accepted[i].endpoint, accepted[i].body, &error);
        if (result < 0) fail_msg("refused (%s): %s", error.problems[0].message, accepted[i].body);
        describe(&request, description, sizeof description);
        openai_request_free(&request);
        if (!strstr(description, accepted[i].expected)) fail_msg("%s: %s", accepted[i].body, description);
    }
}

static void shapes_and_samplers_are_taken(void **state) {
    (void)state;
    static const struct {
        const char *fields;
        bool grammar;
    } cases[] = {
        {"\"response_format\":{\"type\":\"text\"}", false},
        {"\"response_format\":{\"type\":\"json_object\"}", true},
        {"\"response_format\":{\"type\":\"json_object\",\"schema\":{\"type\":\"object\"}}", true},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"strict\":true,\"schema\":{\"type\":\"object\"}}}", true},
        {"\"json_schema\":{\"type\":\"integer\"}", true},
        {"\"grammar\":\"root ::= [a-z]+\"", true},
        {"\"grammar\":\"\"", false},
        {"\"guided_json\":\"{\\\"type\\\":\\\"null\\\"}\"", true},
        {"\"guided_choice\":[\"a\\\"b\",\"c\\\\\\n\"]", true},
        {"\"structured_outputs\":{\"json_object\":true}", true},
        {"\"structured_outputs\":{\"choice\":[\"x\"]},\"samplers\":[\"top-k\",\"temperature\"],\"dry_sequence_breakers\":[\"a\"],\"mirostat\":2", true},
    };
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    for (size_t i = 0; i < COUNT(cases); i++) {
        char body[600];
        openai_request request;
        openai_error error;
        snprintf(body, sizeof body, "{" HI ",%s}", cases[i].fields);
        if (read_request(&request, &context, OPENAI_CHAT, body, &error) < 0) fail_msg("%s: %s", body, error.problems[0].message);
        assert_int_equal(request.job.grammar != NULL, cases[i].grammar);
        if (i + 1 == COUNT(cases)) {
            assert_int_equal(request.job.sampling.n_chain, 2);
            assert_int_equal(request.job.sampling.chain[1], WEIR_SAMPLER_TEMPERATURE);
            assert_int_equal(request.job.sampling.mirostat, 2);
            assert_string_equal(request.job.sampling.dry_breakers[0], "a");
        }
        openai_request_free(&request);
    }
}

static void seeds(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    static const struct {
        const char *body;
        uint64_t seed;
    } given[] = {
        {"{" HI ",\"seed\":0}", 0},
        {"{" HI ",\"seed\":42}", 42},
        {"{" HI ",\"seed\":9223372036854775807}", INT64_MAX},
        {"{" HI ",\"seed\":-2}", UINT64_MAX - 1},
    };
    openai_request request;
    openai_error error;
    for (size_t i = 0; i < COUNT(given); i++) {
        assert_int_equal(read_request(&request, &context, OPENAI_CHAT, given[i].body, &error), 0);
        assert_true(request.job.sampling.seed == given[i].seed);
        openai_request_free(&request);
    }
    /* None, null and -1 give a fresh seed each time. */
    static const char *const random[] = {"{" HI "}", "{" HI ",\"seed\":null}", "{" HI ",\"seed\":-1}", "{" HI "}"};
    uint64_t seen[COUNT(random)];
    for (size_t i = 0; i < COUNT(random); i++) {
        assert_int_equal(read_request(&request, &context, OPENAI_CHAT, random[i], &error), 0);
        seen[i] = request.job.sampling.seed;
        openai_request_free(&request);
        for (size_t k = 0; k < i; k++) assert_true(seen[i] != seen[k]);
    }
}

/* ---- more than one problem, templates, limits ---------------------------------------------------------------------------- */

static void all_problems_are_reported(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    openai_request request;
    openai_error error;
    buf out = BUF_INIT;
    assert_true(read_request(&request, &context, OPENAI_CHAT,
                             "{\"messages\":[{\"role\":\"user\"}],\"temperature\":9,\"stop\":5,\"n\":\"x\"}", &error) < 0);
    openai_request_free(&request);
    assert_int_equal(error.n_problems, 4);
    openai_error_write(&out, &error);
    assert_string_equal(
        out.data,
        "{\"error\":{\"message\":\"'messages[0].content' is required; 'temperature' must be a number of at least 0 and at most "
        "2, not "
        "9; 'n' must be an integer, not a string; 'stop' must be a string or an array of strings, not an integer\","
        "\"type\":\"invalid_request_error\",\"param\":\"messages[0].content\",\"code\":\"missing_required_parameter\","
        "\"errors\":["
        "{\"message\":\"'messages[0].content' is required\",\"param\":\"messages[0].content\",\"code\":"
        "\"missing_required_parameter\"},"
        "{\"message\":\"'temperature' must be a number of at least 0 and at most 2, not 9\",\"param\":\"temperature\",\"code\":"
        "\"invalid_value\"},"
        "{\"message\":\"'n' must be an integer, not a string\",\"param\":\"n\",\"code\":\"invalid_type\"},"
        "{\"message\":\"'stop' must be a string or an array of strings, not an integer\",\"param\":\"stop\",\"code\":"
        "\"invalid_type\"}]}}");
    buf_free(&out);
}

static void a_flood_of_problems_is_bounded(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    buf body = BUF_INIT;
    buf_puts(&body, "{\"messages\":[5");
    for (int i = 0; i < 1000; i++) buf_puts(&body, ",5");
    buf_puts(&body, "]}");
    openai_request request;
    openai_error error;
    assert_true(read_request(&request, &context, OPENAI_CHAT, body.data, &error) < 0);
    assert_int_equal(error.n_problems, OPENAI_MAX_PROBLEMS);
    openai_request_free(&request);
    buf_free(&body);
}

static void too_long_prompts_tell_both_numbers(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    char body[256];
    buf out = BUF_INIT;
    openai_request request;
    openai_error error;
    /* BOS and 62 letters leave room for one token; 63 leave none. */
    snprintf(body, sizeof body, "{\"prompt\":\"%.*s\"}", 62,
             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    assert_int_equal(read_request(&request, &context, OPENAI_COMPLETION, body, &error), 0);
    openai_request_free(&request);
    snprintf(body, sizeof body, "{\"prompt\":\"%.*s\"}", 63,
             "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    assert_int_equal(read_request(&request, &context, OPENAI_COMPLETION, body, &error), WEIR_E_CONTEXT);
    openai_request_free(&request);
    openai_error_write(&out, &error);
    assert_string_equal(
        out.data, "{\"error\":{\"message\":\"the prompt has 64 tokens, but the context holds 64 with the answer; shorten the "
                  "prompt or enlarge the context\",\"type\":\"exceed_context_size_error\",\"param\":\"prompt\",\"code\":"
                  "\"context_length_exceeded\",\"n_prompt_tokens\":64,\"n_ctx\":64}}");
    buf_free(&out);
}

/* The longest token of the fake vocabulary has 5 bytes: more than 64 x 2 x 5 bytes cannot fit. */
static void hopeless_prompts_are_not_tokenised(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    assert_int_equal(context.longest_token, 5);
    static const size_t lengths[] = {639, 640, 5000000};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        buf body = BUF_INIT;
        openai_request request;
        openai_error error;
        buf_puts(&body, "{\"prompt\":\"");
        for (size_t k = 0; k < lengths[i]; k++) buf_putc(&body, 'x');
        buf_puts(&body, "\"}");
        int before = fake_n_tokenized();
        assert_int_equal(read_request(&request, &context, OPENAI_COMPLETION, body.data, &error), WEIR_E_CONTEXT);
        assert_int_equal(fake_n_tokenized() - before, lengths[i] < 640);
        assert_int_equal(error.n_prompt_tokens, lengths[i] < 640 ? lengths[i] + 1 : lengths[i] / 10);
        openai_request_free(&request);
        buf_free(&body);
    }
}

static void deep_nesting_is_no_danger(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    static const int depths[] = {100, 1000, 10000, 1000000};
    for (size_t i = 0; i < COUNT(depths); i++) {
        buf body = BUF_INIT;
        buf_puts(&body, "{" HI ",\"x\":");
        for (int k = 0; k < depths[i]; k++) buf_putc(&body, '[');
        for (int k = 0; k < depths[i]; k++) buf_putc(&body, ']');
        buf_putc(&body, '}');
        openai_request request;
        openai_error error;
        int result = read_request(&request, &context, OPENAI_CHAT, body.data, &error);
        assert_true(depths[i] <= 1000 ? result == 0 : result < 0 && error.status == 400);
        openai_request_free(&request);
        buf_free(&body);
    }
}

static void content_takes_the_template_form(void **state) {
    (void)state;
    static const char parts[] = "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]}";
    static const struct {
        fake_template mode;
        openai_content_form form;
        const char *body, *expected;
    } cases[] = {
        {FAKE_TEMPLATE_TEXT, OPENAI_CONTENT_TEXT, parts, "\"content\":\"a\""},
        {FAKE_TEMPLATE_TEXT, OPENAI_CONTENT_TEXT, "{" HI "}", "\"content\":\"hi\""},
        {FAKE_TEMPLATE_EITHER, OPENAI_CONTENT_EITHER, parts, "\"content\":[{\"type\":\"text\",\"text\":\"a\"}]"},
        {FAKE_TEMPLATE_EITHER, OPENAI_CONTENT_EITHER, "{" HI "}", "\"content\":\"hi\""},
        {FAKE_TEMPLATE_PARTS, OPENAI_CONTENT_PARTS, parts, "\"content\":[{\"type\":\"text\",\"text\":\"a\"}]"},
        {FAKE_TEMPLATE_PARTS, OPENAI_CONTENT_PARTS, "{" HI "}", "\"content\":[{\"type\":\"text\",\"text\":\"hi\"}]"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        openai_context context = context_for(cases[i].mode);
        openai_request request;
        openai_error error;
        assert_int_equal(context.content_form, cases[i].form);
        assert_int_equal(read_request(&request, &context, OPENAI_CHAT, cases[i].body, &error), 0);
        if (!strstr(fake_last_variables(), cases[i].expected))
            fail_msg("%s lacks %s", fake_last_variables(), cases[i].expected);
        openai_request_free(&request);
    }
}

static void variables_reach_the_template(void **state) {
    (void)state;
    static const struct {
        const char *fields, *expected;
    } cases[] = {
        {"\"chat_template_kwargs\":{\"enable_thinking\":false,\"messages\":5,\"add_generation_prompt\":7}",
         "{\"enable_thinking\":false,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"add_generation_prompt\":true}"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":"
         "\"f\"}}],"
         "\"add_generation_prompt\":true}"},
        {"\"tool_choice\":\"none\",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"add_generation_prompt\":true}"},
        {"\"reasoning_effort\":\"low\",\"documents\":[{\"t\":1}]",
         "{\"documents\":[{\"t\":1}],\"reasoning_effort\":\"low\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
         "\"add_generation_prompt\":true}"},
    };
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    for (size_t i = 0; i < COUNT(cases); i++) {
        char body[512];
        openai_request request;
        openai_error error;
        snprintf(body, sizeof body, "{" HI ",%s}", cases[i].fields);
        assert_int_equal(read_request(&request, &context, OPENAI_CHAT, body, &error), 0);
        assert_string_equal(fake_last_variables(), cases[i].expected);
        openai_request_free(&request);
    }
    /* What a message has besides role and content reaches the template as it is: reasoning, tool results, names. */
    openai_request request;
    openai_error error;
    assert_int_equal(
        read_request(&request, &context, OPENAI_CHAT,
                     "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"two\"},{\"type\":\"text\",\"text\":\"parts\"}]},"
                     "{\"role\":\"assistant\",\"content\":\"a\",\"reasoning_content\":\"because\"},"
                     "{\"role\":\"tool\",\"content\":\"{\\\"t\\\":21}\",\"tool_call_id\":\"c1\",\"name\":\"f\"}]}",
                     &error),
        0);
    assert_string_equal(fake_last_variables(),
                        "{\"messages\":[{\"role\":\"user\",\"content\":\"two\\nparts\"},"
                        "{\"role\":\"assistant\",\"content\":\"a\",\"reasoning_content\":\"because\"},"
                        "{\"role\":\"tool\",\"content\":\"{\\\"t\\\":21}\",\"tool_call_id\":\"c1\",\"name\":\"f\"}],"
                        "\"add_generation_prompt\":true}");
    openai_request_free(&request);
    /* A part that is no text is refused by its type. */
    assert_true(read_request(&request, &context, OPENAI_CHAT,
                             "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}]}]}",
                             &error) < 0);
    assert_int_equal(error.status, 400);
    assert_string_equal(error.problems[0].param, "messages[0].content[0]");
    assert_string_equal(error.problems[0].message, "'messages[0].content[0]' is an 'image_url' part: this model reads text only");
    openai_request_free(&request);
    /* Arguments of earlier tool calls become objects where they are one. */
    assert_int_equal(
        read_request(&request, &context, OPENAI_CHAT,
                     "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":"
                     "\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}},{\"function\":{\"name\":\"g\",\"arguments\":\"{broken\"}}]},"
                     "{\"role\":\"tool\",\"content\":\"1\"}]}",
                     &error),
        0);
    assert_non_null(strstr(fake_last_variables(), "{\"name\":\"f\",\"arguments\":{\"a\":1}}"));
    assert_non_null(strstr(fake_last_variables(), "{\"name\":\"g\",\"arguments\":\"{broken\"}"));
    openai_request_free(&request);
}

static void a_template_exception_is_the_clients_error(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_RAISES);
    openai_request request;
    openai_error error;
    assert_true(read_request(&request, &context, OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"raise\"}]}",
                             &error) < 0);
    assert_int_equal(error.status, 400);
    assert_string_equal(error.problems[0].message, "Conversation roles must alternate");
    assert_string_equal(error.problems[0].param, "messages");
    openai_request_free(&request);
}

static void no_template_no_chat(void **state) {
    (void)state;
    openai_context context;
    openai_request request;
    openai_error error;
    openai_context_init(&context, fake_model(), NULL, N_CTX);
    assert_true(read_request(&request, &context, OPENAI_CHAT, "{" HI "}", &error) < 0);
    assert_string_equal(error.problems[0].code, "not_supported");
    openai_request_free(&request);
    assert_int_equal(read_request(&request, &context, OPENAI_COMPLETION, "{\"prompt\":\"x\"}", &error), 0);
    openai_request_free(&request);
}

static void a_template_that_knows_developers_gets_them(void **state) {
    (void)state;
    fake_set_chat_template("{% if role == 'developer' %}");
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    fake_set_chat_template(NULL);
    openai_request request;
    openai_error error;
    assert_int_equal(
        read_request(&request, &context, OPENAI_CHAT, "{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}", &error),
        0);
    assert_non_null(strstr(fake_last_variables(), "\"role\":\"developer\""));
    openai_request_free(&request);
}

static void echoed_token_arrays_have_text(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    openai_request request;
    openai_error error;
    assert_int_equal(read_request(&request, &context, OPENAI_COMPLETION, "{\"prompt\":[68,69],\"echo\":true}", &error), 0);
    assert_int_equal(request.prompts[0].text_bytes, 2);
    assert_memory_equal(request.prompts[0].text, "AB", 2);
    openai_request_free(&request);
}

/* Every prefix of a body, and the body with each byte changed, gives an answer and no crash or leak. */
static void mangled_bodies(void **state) {
    (void)state;
    openai_context context = context_for(FAKE_TEMPLATE_TEXT);
    static const char body[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"h\"}]},{\"role\":\"assistant\","
        "\"content\":\"b\"}],"
        "\"stop\":[\"a\"],\"logit_bias\":{\"5\":1},\"n\":2,\"seed\":1,\"temperature\":0.5,\"tools\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"f\"}}],\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
    static const char replacements[] = "\"{}[],:0-\\\xff\0n";
    openai_request request;
    openai_error error;
    for (size_t i = 0; i < sizeof body - 1; i++) {
        char copy[sizeof body];
        error = (openai_error){0};
        assert_true(openai_request_decode(&request, &context, OPENAI_CHAT, body, i, &error) < 0);
        assert_true(error.n_problems > 0);
        openai_request_free(&request);
        for (size_t k = 0; k < sizeof replacements; k++) {
            memcpy(copy, body, sizeof body);
            copy[i] = replacements[k];
            error = (openai_error){0};
            int result = openai_request_decode(&request, &context, OPENAI_CHAT, copy, sizeof body - 1, &error);
            assert_true((result < 0) == (error.n_problems > 0));
            openai_request_free(&request);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals_name_the_field),
        cmocka_unit_test(accepted_requests_mean_what_they_say),
        cmocka_unit_test(shapes_and_samplers_are_taken),
        cmocka_unit_test(seeds),
        cmocka_unit_test(all_problems_are_reported),
        cmocka_unit_test(a_flood_of_problems_is_bounded),
        cmocka_unit_test(too_long_prompts_tell_both_numbers),
        cmocka_unit_test(hopeless_prompts_are_not_tokenised),
        cmocka_unit_test(deep_nesting_is_no_danger),
        cmocka_unit_test(content_takes_the_template_form),
        cmocka_unit_test(variables_reach_the_template),
        cmocka_unit_test(a_template_exception_is_the_clients_error),
        cmocka_unit_test(no_template_no_chat),
        cmocka_unit_test(a_template_that_knows_developers_gets_them),
        cmocka_unit_test(echoed_token_arrays_have_text),
        cmocka_unit_test(mangled_bodies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
