"""Passes requests on, and listens to what answers for as long as it is listened to for a moment only, so that it ends.

listener.py URL: says where it is itself.
"""

import http.client
import http.server
import sys
import time
import urllib.parse

MOMENT_S = 0.3
# Of one connection, and how long the body is.
NOT_PASSED_ON = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}

server = urllib.parse.urlsplit(sys.argv[1])


def listen(response, socket):
    until = time.monotonic() + MOMENT_S
    heard = b""
    while (left := until - time.monotonic()) > 0:
        socket.settimeout(left)
        try:
            more = response.read1()
        except TimeoutError:
            break
        if not more:
            break
        heard += more
    return heard


class PassingOn(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        connection = http.client.HTTPConnection(server.hostname, server.port, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        socket = connection.sock
        response = connection.getresponse()
        is_endless = response.getheader("content-type") == "text/event-stream"
        answer = listen(response, socket) if is_endless else response.read()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in NOT_PASSED_ON:
                self.send_header(name, value)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)
        connection.close()

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.pass_on
        raise AttributeError(name)

    def log_message(self, *of):
        pass


listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PassingOn)
print(f"http://127.0.0.1:{listening.server_port}", flush=True)
listening.serve_forever()
