"""Everything over HTTP that is not an inference, and routing on the raw path."""

import gzip
import json

from tests.differential.cases import HttpCase, get, http, infer, json_infer, one, post, tensor

JSON = {"inputs": [tensor()]}
TEXT = json.dumps(JSON).encode()

ROUTES = {
    "server": "/v2",
    "live": "/v2/health/live",
    "ready": "/v2/health/ready",
    "model": "/v2/models/num",
    "model with labels and two outputs": "/v2/models/pair",
    "model with optional inputs": "/v2/models/types",
    "model of two versions": "/v2/models/ver",
    "model of a version": "/v2/models/ver/versions/1",
    "model of a version that is not": "/v2/models/ver/versions/2",
    "model of version 0": "/v2/models/ver/versions/0",
    "model of version 01": "/v2/models/ver/versions/01",
    "model of a large version": "/v2/models/ver/versions/99999999999999999999",
    "model of a negative version": "/v2/models/ver/versions/-1",
    "model of a version in words": "/v2/models/ver/versions/one",
    "no model": "/v2/models/nobody",
    "model ready": "/v2/models/num/ready",
    "model ready of a version": "/v2/models/ver/versions/3/ready",
    "model ready of no version": "/v2/models/ver/versions/2/ready",
    "no model ready": "/v2/models/nobody/ready",
    "config": "/v2/models/num/config",
    "config of a version": "/v2/models/ver/versions/3/config",
    "config of a sequence model": "/v2/models/seq/config",
    "config of an ensemble": "/v2/models/double/config",
    "no config": "/v2/models/nobody/config",
    "no statistics": "/v2/models/nobody/stats",
    "statistics": "/v2/models/spare/stats",
    "statistics of a version": "/v2/models/ver/versions/1/stats",
    "statistics of all": "/v2/models/stats",
    "a system region that is not": "/v2/systemsharedmemory/region/none/status",
    "cuda regions": "/v2/cudasharedmemory/status",
    "a cuda region that is not": "/v2/cudasharedmemory/region/none/status",
    "trace": "/v2/trace/setting",
    "trace of a model": "/v2/models/num/trace/setting",
    "trace of no model": "/v2/models/nobody/trace/setting",
    "logging": "/v2/logging",
    "nothing": "/",
    "nowhere": "/nothing",
    "v1": "/v1/models",
    "a slash too many": "/v2/",
    "two slashes": "//v2",
    "a slash after a model": "/v2/models/num/",
    "a slash after infer": "/v2/models/num/infer/",
    "two slashes within": "/v2//models/num",
    "no name": "/v2/models/",
    "dots": "/v2/models/../models/num",
    "a dot": "/v2/./models/num",
    "a query": "/v2/models/num?a=b%20c&d",
    "an empty query": "/v2/models/num?",
    "a question twice": "/v2/models/num??",
    "a fragment": "/v2/models/num#x",
    "a hash in an infer": "/v2/models/num#/infer",
    "an escaped letter": "/v2/models/%6eum",
    "an escaped slash": "/v2/models%2fnum",
    "an escaped name in lower case": "/v2/models/n%75m/config",
    "half an escape": "/v2/models/num%2",
    "an escape of nothing": "/v2/models/%zz",
    "an escaped NUL": "/v2/models/num%00",
    "a plus": "/v2/models/n+m",
    "a quote": '/v2/models/"num"',
    "brackets": "/v2/models/{num}<>|^`",
    "a backslash": "/v2\\models\\num",
    "a semicolon": "/v2/models/num;x=1",
    "a star": "/v2/models/*",
    "a tilde": "/v2/models/~num",
    "an @": "/v2/models/a@b:c",
    "capitals": "/V2/MODELS/NUM",
    "a long name": "/v2/models/" + "n" * 4000,
    "get of infer": "/v2/models/num/infer",
    "get of generate": "/v2/models/num/generate",
    "get of index": "/v2/repository/index",
    "get of load": "/v2/repository/models/num/load",
    "get of register": "/v2/systemsharedmemory/region/a/register",
    "an absolute URI": "http://elsewhere/v2/models/num",
    "an absolute URI with a port": "http://elsewhere:80/v2?x",
    "an absolute URI of nothing": "http://elsewhere/",
    "an absolute URI without a path": "http://elsewhere",
}
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
GENERATE = "/v2/models/num/generate"
REPEAT = "/v2/models/repeat/generate"
INDEX = "/v2/repository/index"
SPARE = "/v2/repository/models/nobody"
REGION = "/v2/systemsharedmemory/region/a"

GENERATES: dict[str, HttpCase] = {
    "generate": post(GENERATE, b'{"IN":1.5}'),
    "generate of a list": post(GENERATE, b'{"IN":[1.5,2]}'),
    "generate of nested lists": post(GENERATE, b'{"IN":[[1.5],[2]]}'),
    "generate of text": post(GENERATE, b'{"IN":"1"}'),
    "generate with an id": post(GENERATE, b'{"id":"a","IN":1}'),
    "generate with a number for an id": post(GENERATE, b'{"id":1,"IN":1}'),
    "generate with parameters": post(GENERATE, b'{"IN":1,"parameters":{"a":{"b":1},"c":2.5}}'),
    "generate with a priority": post(GENERATE, b'{"IN":1,"priority":"high","timeout":1}'),
    "generate of nothing": post(GENERATE),
    "generate of an empty object": post(GENERATE, b"{}"),
    "generate of a list of objects": post(GENERATE, b"[]"),
    "generate of half": post(GENERATE, b"{"),
    "generate of no model": post("/v2/models/nobody/generate", b'{"IN":1}'),
    "generate of a version": post("/v2/models/ver/versions/1/generate", b'{"IN":1}'),
    "generate of no version": post("/v2/models/ver/versions/2/generate", b'{"IN":1}'),
    "generate of an error": post(GENERATE, b'{"IN":-3}'),
    "generate of a sequence": post("/v2/models/seq/generate", b'{"IN":1}'),
    "generate of texts": post("/v2/models/text/generate", b'{"IN":"a\\u00e9"}'),
    "generate in gzip": post(GENERATE, gzip.compress(b'{"IN":1}'), "Content-Encoding: gzip"),
    "generate for gzip": post(GENERATE, b'{"IN":1}', "Accept-Encoding: gzip"),
    "generate of none": post(REPEAT, b'{"IN":0}'),
    "generate of one": post(REPEAT, b'{"IN":1}'),
    "generate of three": post(REPEAT, b'{"IN":3}'),
    "stream of none": post(f"{REPEAT}_stream", b'{"IN":0}'),
    "stream of three": post(f"{REPEAT}_stream", b'{"IN":3}'),
    "stream of many": post(f"{REPEAT}_stream", b'{"IN":300}'),
    "stream of one kind": post(f"{GENERATE}_stream", b'{"IN":1}'),
    "stream of an error": post(f"{GENERATE}_stream", b'{"IN":-5}'),
    "stream of half": post(f"{GENERATE}_stream", b"{"),
    "stream of no model": post("/v2/models/nobody/generate_stream", b'{"IN":1}'),
    "stream with a query": post(f"{REPEAT}_stream?x", b'{"IN":2}'),
    "stream of a version": post("/v2/models/repeat/versions/1/generate_stream", b'{"IN":2}'),
    "stream over HTTP/1.0": one(http("POST", f"{REPEAT}_stream", body=b'{"IN":2}', version="1.0")),
}

CONTROL: dict[str, HttpCase] = {
    "index": post(INDEX),
    "index of the ready": post(INDEX, b'{"ready":true}'),
    "index of a word": post(INDEX, b'{"ready":"yes"}'),
    "index of a list": post(INDEX, b"[]"),
    "index of half": post(INDEX, b"{"),
    "index of a repository": post("/v2/repository/other/index"),
    "load of no model": post(f"{SPARE}/load"),
    "load of half": post(f"{SPARE}/load", b"{"),
    "load with a wrong config": post(f"{SPARE}/load", b'{"parameters":{"config":"x"}}'),
    "load with a number": post(f"{SPARE}/load", b'{"parameters":{"config":1}}'),
    "load with a file alone": post(f"{SPARE}/load", b'{"parameters":{"file:1/m":"AA=="}}'),
    "load with an unknown parameter": post(f"{SPARE}/load", b'{"parameters":{"x":"y"}}'),
    "unload of no model": post(f"{SPARE}/unload"),
    "unload of half": post(f"{SPARE}/unload", b"{"),
    "load from a repository": post("/v2/repository/other/models/num/load"),
    "unload from a repository": post("/v2/repository/other/models/num/unload"),
    "register nothing": post(f"{REGION}/register"),
    "register half": post(f"{REGION}/register", b"{"),
    "register without a size": post(f"{REGION}/register", b'{"key":"/a","offset":0}'),
    "register what is not there": post(
        f"{REGION}/register", b'{"key":"/no-such-region","offset":0,"byte_size":8}'
    ),
    "register a negative size": post(
        f"{REGION}/register", b'{"key":"/a","offset":0,"byte_size":-8}'
    ),
    "unregister what is not there": post(f"{REGION}/unregister"),
    "a region of nothing": post("/v2/systemsharedmemory/region//unregister"),
    "register cuda": post(
        "/v2/cudasharedmemory/region/a/register",
        b'{"raw_handle":{"b64":"AAAA"},"device_id":0,"byte_size":8}',
    ),
    "unregister cuda": post("/v2/cudasharedmemory/region/a/unregister"),
    "trace of a wrong name": post("/v2/trace/setting", b'{"trace_nothing":"1"}'),
    "trace of a number": post("/v2/trace/setting", b'{"trace_rate":5}'),
    "trace to a file": post("/v2/trace/setting", b'{"trace_file":"x"}'),
    "trace of half": post("/v2/trace/setting", b"{"),
    "trace of no model set": post("/v2/models/nobody/trace/setting", b"{}"),
    "logging of half": post("/v2/logging", b"{"),
    "logging to a file": post("/v2/logging", b'{"log_file":"x"}'),
    "logging of a wrong kind": post("/v2/logging", b'{"log_info":"yes"}'),
    "infer at an escaped name": json_infer(JSON, model="%6eum"),
    "infer at an escaped path": post("/v2/models/num/%69nfer", TEXT),
    "infer with a query": post("/v2/models/num/infer?timeout=5", TEXT),
    "infer with a hash": post("/v2/models/num/infer#x", TEXT),
    "infer at an absolute URI": post("http://elsewhere/v2/models/num/infer", TEXT),
    "infer with a slash": post("/v2/models/num/infer/", TEXT),
    "infer of no model": infer(model="nobody"),
    "infer of no model with an id": infer(
        {"id": "mine", "inputs": [tensor()]}, b"", model="nobody"
    ),
    "infer of a version": infer(model="ver", version="1"),
    "infer of another version": infer(model="ver", version="3"),
    "infer of the latest": infer(model="ver"),
    "infer of no such version": infer(model="ver", version="2"),
    "infer of version 01": infer(model="ver", version="01"),
    "infer of version 003": infer(model="ver", version="003"),
    "infer of version 0": infer(model="ver", version="0"),
    "infer of a large version": infer(model="ver", version="9" * 30),
    "infer of a version in words": infer(model="ver", version="x"),
    "infer of an ensemble": infer(model="double"),
    "infer of an ensemble's error": infer(
        {"inputs": [tensor(values=[[-4.0]])]}, b"", model="double"
    ),
    "infer of a decoupled model": infer(model="repeat"),
}

for _name, _path in ROUTES.items():
    CONTROL[f"get {_name}"] = get(_path)
for _method in METHODS:
    for _path in ("/v2", "/v2/models/num/infer", "/v2/repository/index", "/nothing"):
        if not (_method == "POST" and _path == "/v2/repository/index"):
            CONTROL[f"{_method} {_path}"] = one(http(_method, _path))
TABLE: dict[str, HttpCase] = GENERATES | CONTROL
