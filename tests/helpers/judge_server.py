"""A fixture: a judge that runs on this machine."""

import http.server
import json
import threading

import pytest


@pytest.fixture
def server():
    """Serve a judge: `reply` maps a prompt to its answer, `codes` are the status codes of its first answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.seen.append((self.path, dict(self.headers), body))
            if state.raw is not None:
                self.wfile.write(state.raw)
                return
            code = state.codes.pop(0) if state.codes else 200
            self.send_response(code)
            self.end_headers()
            reply = state.reply(body["messages"][0]["content"])
            content = {"choices": [{"message": {"content": reply}}]} if code == 200 else {"error": reply}
            self.wfile.write(json.dumps(content).encode() if reply is not None else b"not JSON")

        def log_message(self, *args):
            pass

    class State:
        def __init__(self):
            self.seen, self.codes, self.reply, self.kept = [], [], lambda prompt: "70", []
            self.raw = None  # if set, sent verbatim instead of a response

        def judge(self):
            from scratch_gpt.evaluation.judge import Judge

            return Judge(f"http://127.0.0.1:{http_server.server_port}/v1", "wise", self.kept.append, pause=0.0)

    state = State()
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http_server.shutdown()
    http_server.server_close()
    thread.join()
