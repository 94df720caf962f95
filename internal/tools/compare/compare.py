#!/usr/bin/env python3
"""Compares what two mayfly binaries show to the outside, and prints what differs.

    compare.py OLD NEW

OLD makes a CA; each binary then serves a copy of it on loopback and is asked the
same. What can't be equal (keys, serials, times, ids, ports) is replaced before the
comparison; everything else has to be the same to the byte. Section "words" is the
text of help and messages, which may change on purpose; the others may not. The exit
status is the number of sections outside "words" that differ.
"""
import difflib, glob, json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.error, urllib.request

WORDS = "words"
MASKS = [
    (r"127\.0\.0\.1:\d+", "HOST:PORT"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?", "TIME"),
    (r"\b[0-9a-f]{32,}\b", "HEX"),
    (r"\b[A-Z2-7]{26}\b", "REQUEST"),
    (r"\"timestamp\":\d+", '"timestamp":N'),
    (r"\b\d+(ms|s)\b", "AGE"),
    (r"[A-Za-z0-9+/]{40,}={0,2}", "BASE64"),
    (r"keys are \S+ old", "keys are AGE old"),
    (r"/tmp/\S+?/(old|new)/", "DIR/"),
]


def mask(text):
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return text


def run(binary, args, cwd, stdin=""):
    p = subprocess.run([binary, *args], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=60)
    return p.returncode, mask(p.stdout), mask(p.stderr)


def http(method, url, body=None, headers=None):
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        answer = urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as refusal:
        answer = refusal
    with answer:
        return answer.status, sorted((k, v) for k, v in answer.headers.items() if k not in ("Date", "Content-Length")), answer.read()


def shape(value):
    """The members and kinds of a JSON value."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(v) for v in value[:1]]
    return type(value).__name__


COMMANDS = [
    [], ["--help"], ["nonsense"], ["--nonsense"], ["help", "exit-codes"],
    ["check"], ["check", "--config", "missing.yaml"], ["check", "--config", "ca/mayfly.yaml"],
    *[["check", "--config", f"ca/bad{n}.yaml"] for n in range(8)],
    ["serve", "--config", "ca/bad0.yaml"], ["serve"], ["dev", "--http-address", "192.0.2.1:0"],
    ["log", "verify", "--dir", "ca/ctlog"], ["log", "verify", "--dir", "ca"], ["log", "show", "0", "--dir", "ca/ctlog"],
    ["log", "show", "99", "--dir", "ca/ctlog"], ["log", "proof", "0", "--dir", "ca/ctlog"],
    ["log", "list", "--config", "ca/mayfly.yaml"], ["log", "freeze", "--config", "ca/mayfly.yaml"],
    ["authority", "list", "--config", "ca/mayfly.yaml"], ["authority", "activate", "--config", "ca/mayfly.yaml", "nobody"],
    ["ca", "show", "ca/authority/chain.pem"], ["ca", "verify", "ca/authority/chain.pem"], ["ca", "show", "ca/mayfly.yaml"],
    ["kms", "check", "file:ca/authority/issuing.key.pem"], ["kms", "check", "nonsense:x"], ["kms", "check", "awskms:///alias/x/y"],
    ["cert", "show", "ca/authority/root.pem"], ["cert", "show", "ca/mayfly.yaml"],
    ["token", "explain", "--config", "ca/mayfly.yaml", "--offline"],
    ["request", "--ca", "http://127.0.0.1:1", "--token-stdin"], ["healthcheck", "--address", "127.0.0.1:1"],
    ["config", "import-fulcio", "ca/mayfly.yaml"], ["init", "--dir", "ca"],
]

# What is wrong with each copy of the configuration: text to find, text in its place.
FAULTS = [
    ("mode: embedded", "mode: embeded"), ("audiences:", "audience:"), ("type: email", "type: mail"), ("chain.pem", "gone.pem"),
    ("url: http://127", "url: ftp://127"), ("key: file:ctlog", "key: vault:ctlog"), ('allow: "true"', 'allow: "tru"'), ("server:", "server:\n  grpc_address: x"),
]

PATHS = ["/", "/healthz", "/readyz", "/readyz?verbose", "/openapi.json", "/trusted_root.json", "/signing_config.json", "/trust_config.json",
         "/api/v1/rootCert", "/api/v2/trustBundle", "/api/v2/configuration", "/nothing", "/ctlog", "/ctlog/2026", "/api/v2/signingCert",
         *[f"{{log}}/{p}" for p in ("checkpoint", "log.v3.json", "tile/0/000", "tile/0/000.p/1", "tile/data/000.p/1", "tile/9/000", "ct/v1/get-sth",
                                    "ct/v1/get-roots", "ct/v1/get-entries?start=0&end=0", "ct/v1/get-entries?start=9&end=1",
                                    "ct/v1/get-proof-by-hash?hash=AA&tree_size=1", "ct/v1/get-sth-consistency?first=1&second=1", "ct/v1/nothing")]]

BODIES = {
    "empty": b"", "not JSON": b"{", "an array": b"[]", "unknown member": b'{"x":1}', "no token": b"{}",
    "no key": b'{"credentials":{"oidcIdentityToken":"%s"}}', "junk token": b'{"credentials":{"oidcIdentityToken":"a.b.c"}}',
    "unknown issuer": b'{"credentials":{"oidcIdentityToken":"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL3gifQ.AAAA"}}',
    "junk key": b'{"credentials":{"oidcIdentityToken":"%s"},"publicKeyRequest":{"publicKey":{"algorithm":"ECDSA","content":"x"},"proofOfPossession":"AAAA"}}',
    "junk CSR": b'{"credentials":{"oidcIdentityToken":"%s"},"certificateSigningRequest":"AAAA"}', "too large": b"x" * (1 << 21),
}


def serve(binary, folder):
    """What one running service says, by section."""
    free = [f"--{n}-address=127.0.0.1:0" for n in ("http", "grpc", "issuer", "metrics")]
    log = open(os.path.join(folder, "service.log"), "wb")
    process = subprocess.Popen([binary, "dev", "--dir", "ca", *free], cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not os.path.exists(f"{folder}/ca/endpoints.json"):
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit(f"{binary} dev did not start: {folder}/service.log")
            time.sleep(0.05)
        at = json.load(open(f"{folder}/ca/endpoints.json"))
        token = urllib.request.urlopen(at["issuer"] + "/dev/token?email=alice@example.com").read().strip()
        code, out, err = run(binary, ["request", "--ca", at["http"], "--token-stdin", "--output-key", "k", "--output-certificate", "c"], folder, token.decode())
        show = run(binary, ["cert", "show", "c", "--trusted-root", "ca/trusted_root.json"], folder)
        got = {"request": [code], "cert show": [show[0]], WORDS: [out, err, *show[1:]]}
        prefix = at["ctlog"][len(at["http"]):]
        while http("GET", at["ctlog"] + "/checkpoint")[2].split(b"\n")[1] != b"1":
            time.sleep(0.05)
        for path in PATHS:
            status, headers, body = http("GET", at["http"] + path.format(log=prefix))
            text = body.decode("latin1")
            got["GET " + path] = [status, mask(str(headers)), f"{len(body) > 0}" if "tile/" in path else mask(text)]
        for name, body in BODIES.items():
            for where in ("/api/v2/signingCert", "/api/v1/signingCert"):
                kind = {"Content-Type": "application/json", "Authorization": "Bearer " + token.decode()}
                status, headers, answer = http("POST", at["http"] + where, body.replace(b"%s", token), kind)
                parsed = json.loads(answer)
                got[f"POST {where} {name}"] = [status, mask(str(headers)), shape(parsed), [d.get("reason") for d in parsed.get("details", [])]]
                got[WORDS].append(mask(str(parsed.get("message"))))
        scrape = urllib.request.urlopen(at["metrics"] + "/metrics").read().decode()
        names = {re.sub(r"=\"[^\"]*\"", "", line.rsplit(" ", 1)[0]) for line in scrape.splitlines() if line.startswith(("mayfly_", "# TYPE mayfly_", "# HELP mayfly_"))}
        got["metrics"] = sorted(mask(n) for n in names)
        process.send_signal(signal.SIGTERM)
        got["exit status of SIGTERM"] = [process.wait(30)]
    finally:
        process.kill()
    got["audit"] = [shape(json.loads(line)) for f in sorted(glob.glob(f"{folder}/ca/audit/*.jsonl")) for line in open(f)]
    got["service log"] = sorted({json.dumps(sorted(re.findall(r" (\w+)=", line))) for line in open(f"{folder}/service.log") if line.startswith("time=")})
    return got


def collect(binary, folder):
    got = serve(binary, folder)
    text = open(f"{folder}/ca/mayfly.yaml").read()
    for n, (find, put) in enumerate(FAULTS):
        assert find in text, find
        open(f"{folder}/ca/bad{n}.yaml", "w").write(text.replace(find, put, 1))
    for args in COMMANDS:
        code, out, err = run(binary, args, folder)
        got["exit status of mayfly " + " ".join(args)] = [code]
        got[WORDS] += [out, err]
    return got


def main():
    signal.alarm(180)  # whatever hangs, this ends
    old, new = (os.path.abspath(p) for p in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as work:
        os.makedirs(f"{work}/old")
        first = subprocess.Popen([old, "dev", "--dir", "ca", *[f"--{n}-address=127.0.0.1:0" for n in ("http", "grpc", "issuer", "metrics")]],
                                 cwd=f"{work}/old", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not os.path.exists(f"{work}/old/ca/endpoints.json") and first.poll() is None:
            time.sleep(0.05)
        first.terminate()
        first.wait()
        shutil.copytree(f"{work}/old", f"{work}/new")
        a, b = collect(old, f"{work}/old"), collect(new, f"{work}/new")
    differ = 0
    for section in sorted(set(a) | set(b), key=lambda s: (s == WORDS, s)):
        lines = [[x for part in side.get(section, ["(absent)"]) for x in str(part if isinstance(part, str) else json.dumps(part)).splitlines()] for side in (a, b)]
        delta = [d for d in difflib.unified_diff(*lines, lineterm="", n=0) if not d.startswith(("---", "+++", "@@"))]
        if delta:
            differ += section != WORDS
            print(f"== {section}", *delta, sep="\n")
    print(f"{len(a)} sections compared; {differ} differ outside of words")
    sys.exit(min(differ, 100))


main()
