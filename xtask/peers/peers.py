"""llama.cpp, loaded once and told by lines on stdin what to run; one line of JSON comes back for each.

    info                              versions, what it was built with
    load PATH THREADS CONTEXT SEQS    a model, with room for SEQS sequences of CONTEXT tokens each
    pp N                              reads a prompt of N tokens in batches of 512
    tg N SEQS DEPTH                   SEQS sequences with DEPTH tokens of context each decode N tokens each, together
    greedy N ID,ID,...                the N likeliest tokens that follow these
    compare FILE ID,ID,...            its logits at every token with those in FILE, the JSON of `exotherm logits`
    quantize TYPE IN OUT              ggml's own quantizer

A speed is of a second run, after an unmeasured one, which is short but for the first after loading. Choosing tokens is not part of it: the tokens are fixed. All settings
are llama.cpp's defaults but for the number of threads, the context, the sequences and no offloading.
"""

import ctypes
import json
import os
import pathlib
import re
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as api

BATCH = 512
# What a short unmeasured run reads and decodes at most: enough to have touched all weights and to have woken all threads.
WARM_PROMPT, WARM_DECODE = 128, 16
LOG = []


@api.llama_log_callback
def keep_log(_level, text, _data):
    LOG.append(text.decode(errors="replace"))
    del LOG[:-2000]


def libraries():
    folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
    return [p for p in folder.iterdir() if ".so" in p.name or p.suffix in (".dylib", ".dll")]


def info():
    system = api.llama_print_system_info().decode()
    calls = re.compile(rb"GOMP_parallel|__kmpc_fork_call")
    openmp = [p.name for p in libraries() if calls.search(p.read_bytes())]
    if "OPENMP = 1" in system:
        openmp.append("llama_print_system_info")
    return {"version": llama_cpp.__version__, "system": system, "openmp": openmp, "libraries": len(libraries())}


def ids(text):
    return [int(i) for i in text.split(",")]


class Model:
    def __init__(self, path, threads, context, seqs):
        LOG.clear()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError("".join(LOG[-5:]))
        params = api.llama_context_default_params()
        params.n_ctx = seqs * context
        params.n_batch = BATCH
        params.n_seq_max = seqs
        params.n_threads = params.n_threads_batch = threads
        params.offload_kqv = False
        params.op_offload = False
        self.flash_default = api.llama_flash_attn_type_name(params.flash_attn_type).decode()
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("".join(LOG[-5:]))
        self.memory = api.llama_get_memory(self.context)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        # Sequences and tokens of context that a decoding test has filled.
        self.filled = None
        # Tests that have been run before.
        self.known = set()

    def free(self):
        api.llama_batch_free(self.batch)
        api.llama_free(self.context)
        api.llama_model_free(self.model)

    def about(self):
        used = any("FLASH_ATTN_EXT" in line or "Flash Attention enabled" in line for line in LOG)
        return {"flash_attention": f"{self.flash_default}, {'enabled' if used else 'not enabled'}"}

    def decode(self, rows):
        """rows: (token, position, sequence, whether its logits are wanted)"""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, seq, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
        result = api.llama_decode(self.context, batch)
        if result != 0:
            raise RuntimeError(f"llama_decode: {result} {''.join(LOG[-3:])}")
        api.llama_synchronize(self.context)

    def token(self, i):
        return 1 + i * 7919 % (min(self.vocab, 49152) - 1)

    def clear(self):
        api.llama_memory_clear(self.memory, True)
        self.filled = None

    def warm(self, test, n, most):
        """How many tokens the unmeasured run has: all the first time, for then memory is touched that never was."""
        is_known = test in self.known
        self.known.add(test)
        return min(n, most) if is_known else n

    def read(self, tokens, seq=0, all_logits=False):
        for start in range(0, len(tokens), BATCH):
            part = tokens[start:start + BATCH]
            last = len(tokens) - 1
            self.decode([(t, start + i, seq, all_logits or start + i == last) for i, t in enumerate(part)])

    def prompt(self, n):
        for tokens in (self.warm(("pp", n), n, WARM_PROMPT), n):
            prompt = [self.token(i) for i in range(tokens)]
            self.clear()
            begin = time.perf_counter()
            self.read(prompt)
            seconds = time.perf_counter() - begin
        return {"tok_s": n / seconds}

    def generate(self, n, seqs, depth):
        if self.filled != (seqs, depth):
            self.clear()
            for seq in range(seqs if depth else 0):
                self.read([self.token(i + seq) for i in range(depth)], seq)
            self.filled = (seqs, depth)
        for tokens in (self.warm(("tg", n, seqs, depth), n, WARM_DECODE), n):
            for seq in range(seqs):
                if not api.llama_memory_seq_rm(self.memory, seq, depth, -1):
                    raise RuntimeError("the sequence cannot be cut off")
            begin = time.perf_counter()
            for i in range(tokens):
                self.decode([(self.token(31 * i + seq), depth + i, seq, True) for seq in range(seqs)])
            seconds = time.perf_counter() - begin
        return {"tok_s": n * seqs / seconds}

    def logits(self, i):
        row = api.llama_get_logits_ith(self.context, i)
        return np.ctypeslib.as_array(row, shape=(self.vocab,)).copy()

    def greedy(self, n, tokens):
        self.clear()
        self.read(tokens)
        written = []
        for i in range(n):
            written.append(int(np.argmax(self.logits(-1))))
            self.decode([(written[-1], len(tokens) + i, 0, True)])
        return {"tokens": written}

    def compare(self, path, tokens):
        with open(path) as file:
            rows = json.load(file)["logits"]
        self.clear()
        self.read(tokens, all_logits=True)
        agreements, divergences = 0, []
        for i, row in enumerate(rows):
            ours, theirs = (log_softmax(np.asarray(r, np.float64)) for r in (row[:self.vocab], self.logits(i)))
            agreements += int(np.argmax(ours) == np.argmax(theirs))
            divergences.append(float(np.sum(np.exp(theirs) * (theirs - ours))))
        return {"positions": len(rows), "top1": agreements / len(rows), "mean_kl": float(np.mean(divergences)),
                "max_kl": max(divergences)}


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def quantize(kind, source, target):
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    params.allow_requantize = True
    partial = target + ".part"
    try:
        if api.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params)) != 0:
            raise RuntimeError("".join(LOG[-5:]))
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return {}


def answer(state, command, rest):
    if command == "info":
        return info()
    if command == "quantize":
        return quantize(*rest)
    if command == "load":
        if state:
            state.pop().free()
        state.append(Model(rest[0], *map(int, rest[1:])))
        return state[0].about()
    model = state[0]
    if command == "pp":
        return model.prompt(int(rest[0]))
    if command == "tg":
        return model.generate(*map(int, rest))
    if command == "greedy":
        return model.greedy(int(rest[0]), ids(rest[1]))
    if command == "compare":
        return model.compare(rest[0], ids(rest[1]))
    raise ValueError(f"unknown command {command}")


def main():
    api.llama_log_set(keep_log, None)
    api.llama_backend_init()
    state = []
    # Words of a line are parted by tabs, for paths may have blanks in them.
    for line in sys.stdin:
        command, *rest = line.rstrip("\n").split("\t")
        try:
            reply = answer(state, command, rest)
        except Exception as error:  # whatever it is, the other side says it and ends
            reply = {"error": f"{command}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
