"""A server on this machine that speaks the little of the hub's protocol that sharing needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLD_COMMIT = "f" * 40


@dataclass
class Repository:
    """What the server keeps of one: files by name; what it says may differ from what it sends."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    token: str | None = None
    # names listed in the place of, or beside, those that are there
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class HubDouble:
    """The server; use as a context. `requests` holds method, path and authorisation of each."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.failing: int | None = None
        self.page = b"{}"
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                double.requests.append((self.command, self.path, self.headers.get("Authorization")))
                if double.failing is not None:
                    self.answer(double.failing, double.page)
                else:
                    double.serve(self, body)

            do_GET = do_HEAD = do_POST = do_PUT = _do  # noqa: N815 - the library's names

            def answer(
                self,
                status: int,
                data: bytes,
                headers: dict[str, str] | None = None,
                cut: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True

            def json(self, value: Any, status: int = 200) -> None:
                self.answer(
                    status, json.dumps(value).encode(), {"Content-Type": "application/json"}
                )

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        # where large files lie: by its name another host
        self.elsewhere = f"http://localhost:{port}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: Any, body: bytes) -> None:
        path = unquote(urlsplit(request.path).path)
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
        ):
            found = re.fullmatch(pattern, path)
            if found:
                method(request, body, *found.groups())
                return
        if path == "/api/repos/create":
            self._create(request, json.loads(body))
        elif path == "/api/validate-yaml":
            request.json({"errors": [], "warnings": []})
        elif path.startswith("/objects/"):
            self._object(request, body, path.removeprefix("/objects/"))
        else:
            request.answer(404, b"")

    def _known(self, request: Any, name: str) -> Repository | None:
        kept = self.repositories.get(name)
        given = request.headers.get("Authorization")
        if kept is None or (kept.token is not None and given != f"Bearer {kept.token}"):
            request.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        return kept

    def _info(self, request: Any, _: bytes, name: str, revision: str | None) -> None:
        kept = self._known(request, name)
        if kept is None:
            return
        if revision not in (None, "main", COMMIT, "v1", *kept.branches):
            request.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [
            {"rfilename": file, **self._described(file, data)} for file, data in kept.files.items()
        ]
        siblings = [{**item, **kept.listed.get(item["rfilename"], {})} for item in siblings]
        siblings += [
            {"rfilename": file, **about}
            for file, about in kept.listed.items()
            if file not in kept.files
        ]
        request.json({"id": name, "sha": COMMIT, "private": kept.private, "siblings": siblings})

    def _described(self, name: str, data: bytes) -> dict[str, Any]:
        if name.endswith(".safetensors"):
            sha = hashlib.sha256(data).hexdigest()
            return {"size": len(data), "lfs": {"sha256": sha, "size": len(data), "pointerSize": 1}}
        head = f"blob {len(data)}\0".encode()
        return {"size": len(data), "blobId": hashlib.sha1(head + data).hexdigest()}

    def _resolve(self, request: Any, _: bytes, name: str, revision: str, file: str) -> None:
        kept = self._known(request, name)
        if kept is None:
            return
        data = kept.sent.get(file, kept.files.get(file))
        if data is None or revision != COMMIT:
            request.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
        if file.endswith(".safetensors"):
            # large files lie elsewhere
            self.objects[f"{file}-{digest}"] = data
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.elsewhere}/objects/{file}-{digest}",
            }
            request.answer(302, b"", headers)
        else:
            request.answer(200, data, headers, cut=file in kept.cut)

    def _object(self, request: Any, body: bytes, name: str) -> None:
        if request.command == "PUT":
            self.objects[name] = body
            request.answer(200, b"")
            return
        data = self.objects[name]
        cut = any(name.startswith(f"{f}-") for r in self.repositories.values() for f in r.cut)
        request.answer(200, data, cut=cut)

    def _create(self, request: Any, order: dict[str, Any]) -> None:
        name = f"{order.get('organization') or 'user'}/{order['name']}"
        status = 200 if name not in self.repositories else 409
        private = bool(order.get("private") or order.get("visibility") == "private")
        self.repositories.setdefault(name, Repository(private=private))
        request.json({"url": f"{self.endpoint}/{name}", "name": name}, status)

    def _branch(self, request: Any, _: bytes, name: str, branch: str) -> None:
        self.repositories[name].branches.setdefault(branch, {})
        request.json({})

    def _preupload(self, request: Any, body: bytes, name: str, _: str) -> None:
        if self._known(request, name) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        request.json({"files": files})

    def _batch(self, request: Any, body: bytes, _: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.endpoint}/objects/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        request.json({"transfer": "basic", "objects": objects})

    def _commit(self, request: Any, body: bytes, name: str, branch: str) -> None:
        kept = self.repositories[name]
        files = kept.files if branch == "main" else kept.branches[branch]
        for line in body.splitlines():
            order = json.loads(line)
            value = order["value"]
            if order["key"] == "header":
                kept.messages.append(value["summary"])
            elif order["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif order["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        url = f"{self.endpoint}/{name}/commit/{COMMIT}"
        request.json({"success": True, "commitOid": COMMIT, "commitUrl": url})
