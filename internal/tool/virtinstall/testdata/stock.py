# Runs the stock virt-install many times in one process, for the differential
# tests: it takes 0.4 s as a program, most of it to load its modules and
# osinfo-db. Here they are loaded once, and each command line runs in a fork,
# so that none sees what another one left behind.
#
# Reads lines of JSON, {"args": [...]}, and answers each with one of
# {"status": n, "out": "...", "err": "..."}. What a run defined on the daemon
# (--dry-run makes storage pools) is removed before the next.
import json
import os
import sys
import traceback

sys.path.insert(0, "/usr/share/virt-manager")
import gi
gi.require_version("Libosinfo", "1.0")
import libvirt
from virtinst import OSDB, cli, virtinstall


def run(args):
    sys.argv = ["virt-install"] + args
    try:
        virtinstall.runcli()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def pools(conn):
    return {pool.name() for pool in conn.listAllStoragePools()}


def child(args, out, err):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    conn = libvirt.open("qemu:///system")
    before = pools(conn)
    status = run(args)
    sys.stdout.flush()
    sys.stderr.flush()
    for pool in conn.listAllStoragePools():
        if pool.name() not in before:
            if pool.isActive():
                pool.destroy()
            pool.undefine()
    return status


def forked(args):
    out, err = os.memfd_create("out"), os.memfd_create("err")
    pid = os.fork()
    if pid == 0:
        status = 98
        try:
            status = child(args, out, err)
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def text(fd):
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(fd, "rb") as f:
            return f.read().decode("utf-8", "replace")
    return {"status": status, "out": text(out), "err": text(err)}


libvirt.registerErrorHandler(lambda ctx, error: None, None)
for o in OSDB.list_os():
    o.name
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    answers.write(json.dumps(forked(json.loads(line)["args"])) + "\n")
    answers.flush()
