"""A small real HTTP server with OpenAI's completions API, whose answers follow from the seed.

python completions_server.py PORT MODEL_FOLDER
"""

import json
import random
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECONDS_PER_TOKEN = 0.002


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = ""

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "policy", "root": self.model}]})
        else:
            self.answer(404, {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        draw = random.Random(json.dumps([body["prompt"], body["seed"]]))
        ids = [draw.randrange(3, 500) for _ in range(draw.randrange(1, body["max_tokens"] + 4))]
        ended = len(ids) < body["max_tokens"]
        ids = [*ids, body["stop_token_ids"][0]] if ended else ids[: body["max_tokens"]]
        time.sleep(len(ids) * SECONDS_PER_TOKEN)
        choice = {"text": "", "token_ids": ids, "finish_reason": "stop" if ended else "length"}
        self.answer(200, {"choices": [choice]})

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    Handler.model = sys.argv[2]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
