"""Measures mistral.rs on a GGUF file through its Python API and prints rows as llama-bench's JSON has them.

    mistralrs_bench.py -m model.gguf -p 512 -n 128 [-d DEPTH]

Run with the Python of an environment that has the package mistralrs; RAYON_NUM_THREADS sets the threads. The prompt is made of random
words, long enough for the tokens asked for; speeds are from mistral.rs' own token counts and times. No prefix is kept between
requests.
"""
import argparse
import json
import random
from pathlib import Path

from mistralrs import CompletionRequest, Runner, Which

WORDS = "river stone lantern copper meadow thunder violet harbour walnut saddle winter marble candle orchard pepper silver".split()


def complete(runner, n_words, n_gen, seed):
    rng = random.Random(seed)
    prompt = " ".join(rng.choice(WORDS) for _ in range(n_words))
    request = CompletionRequest(model="default", prompt=prompt, max_tokens=n_gen, temperature=1.0, echo_prompt=False)
    return runner.send_completion_request(request).usage


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, type=Path)
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=128)
    parser.add_argument("-d", "--n-depth", type=int, default=0)
    arguments = parser.parse_args()
    runner = Runner(which=Which.GGUF(quantized_model_id=str(arguments.model.resolve().parent), quantized_filename=arguments.model.name),
                    prefix_cache_n=0, no_paged_attn=True)
    usage = complete(runner, 64, 4, 0)  # to warm up, and to learn how many tokens a word takes
    tokens_per_word = max(usage.prompt_tokens, 1) / 64
    rows = []
    if arguments.n_prompt and not arguments.n_depth:
        usage = complete(runner, round(arguments.n_prompt / tokens_per_word), 1, 1)
        rows.append({"n_prompt": arguments.n_prompt, "n_gen": 0, "n_depth": 0, "measured_tokens": usage.prompt_tokens,
                     "samples_ts": [usage.prompt_tokens / usage.total_prompt_time_sec]})
    if arguments.n_gen:
        seconds, n_tok, runs = 0.0, 0, 0
        while n_tok < arguments.n_gen * 0.75 and runs < 8:  # an answer may end early
            usage = complete(runner, max(1, round(arguments.n_depth / tokens_per_word)), arguments.n_gen - n_tok, 2 + runs)
            seconds += usage.total_completion_time_sec
            n_tok += usage.completion_tokens
            runs += 1
        rows.append({"n_prompt": 0, "n_gen": arguments.n_gen, "n_depth": arguments.n_depth, "measured_tokens": n_tok,
                     "samples_ts": [n_tok / seconds]})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
