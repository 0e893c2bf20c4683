"""Run llama.cpp's HTTP server on one thread until the process is killed.

python tests/servers/llama_server.py FILE.gguf --port PORT
"""

import argparse
import threading

import xllamacpp


parser = argparse.ArgumentParser()
parser.add_argument("file")
parser.add_argument("--port", type=int, required=True)
given = parser.parse_args()
wanted = xllamacpp.CommonParams()
wanted.model.path = given.file
wanted.hostnames, wanted.port = ["127.0.0.1"], given.port
wanted.n_parallel = wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
wanted.fit_params = wanted.warmup = wanted.cache_prompt = False
wanted.n_gpu_layers = 0
server = xllamacpp.Server(wanted)
threading.Event().wait()
