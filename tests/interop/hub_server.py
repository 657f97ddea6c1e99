"""A hub on this machine: the few routes of its API that huggingface_hub calls to fetch and to push."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Hub:
    """Repositories with one commit each, and what was asked.

    Attributes:
      files: repository -> path -> bytes.
      refuse: status -> repositories that answer with it.
    """

    def __init__(self):
        self.files, self.asked, self.refuse, self.made = {}, [], {}, []


@contextmanager
def serving(hub):
    """Its address, while it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, content=b"", **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refused(self, repository):
            for (status, code), names in hub.refuse.items():
                if repository in names:
                    self.answer(status, {"error": "no"}, **({"X_Error_Code": code} if code else {}))
                    return True
            return False

        def do_GET(self):
            hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repository, what = "/".join(parts[2:4]), parts[4:]
                if self.refused(repository):
                    return None
                if repository not in hub.files:
                    return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
                if what[:1] == ["revision"] and what[1] not in ("main", "v1", COMMIT):
                    return self.answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
                if what[:1] == ["tree"]:
                    return self.answer(200, [entry(path, data) for path, data in hub.files[repository].items()])
                names = [{"rfilename": path} for path in hub.files[repository]]
                return self.answer(200, {"id": repository, "sha": COMMIT, "siblings": names})
            repository, path = "/".join(parts[:2]), "/".join(parts[4:])
            if path not in hub.files.get(repository, {}):
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            data = hub.files[repository][path]
            etag = hashlib.sha1(data).hexdigest()
            return self.answer(200, data, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
            path = self.path.partition("?")[0]
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                if self.refused(name):
                    return None
                hub.made.append(asked)
                hub.files.setdefault(name, {})
                return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            repository = "/".join(path.split("/")[3:5])
            if path.endswith("/preupload/main"):
                asked = json.loads(body)["files"]
                files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]
                return self.answer(200, {"files": files})
            assert path.endswith("/commit/main"), path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{repository}/commit/{COMMIT}"
            return self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(path, data):
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
