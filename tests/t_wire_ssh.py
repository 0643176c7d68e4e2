#!/usr/bin/env python3
"""Stands in for ssh where what it carries has to go over the test's own wire, and is lost with it (t_netns_ssh.sh goes beside it).

t_wire_ssh.py --serve ADDRESS           on the other host: runs what is asked for, port 2222
t_wire_ssh.py [ssh's options] HOST WORD…  called like ssh; HOST is resolved

Two connections for each call: standard input and output on one, standard error and then the exit status on the other. As with sshd, a command whose caller vanishes without a word is not
told: it has to notice by itself."""
import os, secrets, socket, struct, subprocess, sys, threading

PORT = 2222


def copy(source, sink, done=None):
    try:
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(sink, data) :]
    except OSError:
        pass
    if done:
        done()


def read_line(s):
    line = b""
    while not line.endswith(b"\n"):
        piece = s.recv(1)
        if not piece:
            raise EOFError
        line += piece
    return line[:-1]


def serve(address):
    waiting = {}
    lock = threading.Lock()

    def run(words, data, errors):
        # Its own group, and nothing of ours: the sockets are its standard streams.
        child = subprocess.Popen(["/bin/sh", "-c", words], stdin=data, stdout=data, stderr=subprocess.PIPE, start_new_session=True)
        data.close()
        copy(child.stderr.fileno(), errors.fileno())
        status = child.wait()
        try:
            errors.sendall(b"\0" + struct.pack("<i", status if status >= 0 else 128 - status))
        except OSError:
            pass
        errors.close()

    def greet(s):
        try:
            token, kind = read_line(s).split(b" ", 1)
            words = s.recv(int(read_line(s)), socket.MSG_WAITALL).decode() if kind == b"data" else None
        except (OSError, EOFError, ValueError):
            return
        with lock:
            other = waiting.pop(token, None)
            if other is None:
                waiting[token] = (s, words)
                return
        data, errors = (s, other[0]) if words is not None else (other[0], s)
        run(words if words is not None else other[1], data, errors)

    listener = socket.create_server((address, PORT), backlog=50)
    print("serving", flush=True)
    while True:
        s, _ = listener.accept()
        threading.Thread(target=greet, args=(s,), daemon=True).start()


def call(host, words):
    token = secrets.token_hex(8).encode()
    try:
        data, errors = (socket.create_connection((host, PORT), timeout=10) for _ in range(2))
    except OSError as e:
        print(f"ssh: connect to host {host} port {PORT}: {e}", file=sys.stderr)
        sys.exit(255)
    for s in (data, errors):
        s.settimeout(None)
    text = words.encode()
    data.sendall(token + b" data\n%d\n" % len(text) + text)
    errors.sendall(token + b" errors\n")

    def end_of_input():
        try:
            data.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    threading.Thread(target=copy, args=(0, data.fileno(), end_of_input), daemon=True).start()
    output = threading.Thread(target=copy, args=(data.fileno(), 1), daemon=True)
    output.start()
    said = b""
    while piece := errors.recv(65536):
        said += piece
        at = said.find(b"\0")
        os.write(2, said if at < 0 else said[:at])
        said = b"" if at < 0 else said[at:]
    output.join()
    os._exit(struct.unpack("<i", said[1:5])[0] & 255 if len(said) == 5 else 255)


if sys.argv[1] == "--serve":
    serve(sys.argv[2])
at = 1
while sys.argv[at] in ("-x", "-T", "-q", "-o", "-p", "-l"):
    at += 1 if sys.argv[at] in ("-x", "-T", "-q") else 2
call(sys.argv[at].split("@")[-1], " ".join(sys.argv[at + 1 :]))
