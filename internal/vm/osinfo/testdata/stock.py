# Asks the stock software what it says: libosinfo of every system, or of given
# discs; virt-install of the machines that it would make. No daemon is needed:
# virt-install's own test connection takes the host's capabilities from files.
#
#   stock.py systems                    -> JSON {id: {...}}
#   stock.py discs < JSON [{...}, ...]  -> JSON [[id, architecture, ...] or null, ...]
#   stock.py trees < JSON [{...}, ...]  -> JSON [[id] or null, ...]
#   stock.py machines < JSON [[argument, ...], ...] -> JSON [domain XML, ...]
import contextlib
import io
import json
import os
import sys


def database():
    import gi
    gi.require_version("Libosinfo", "1.0")
    from gi.repository import Libosinfo
    loader = Libosinfo.Loader()
    loader.process_default_path()
    return Libosinfo, loader.get_db()


def items(l):
    return [l.get_nth(i) for i in range(l.get_length())]


def systems():
    _, db = database()
    known = {}  # devices are few, and each call into the library costs

    def device(d):
        if d not in known:
            known[d] = [d.get_id(), d.get_name() or "", d.get_class() or ""]
        return known[d]

    def resources(l):
        return [[r.get_architecture(), r.get_n_cpus(), r.get_ram(), r.get_storage()] for r in items(l)]
    out = {}
    for o in items(db.get_os_list()):
        out[o.get_id()] = {
            "short": o.get_short_id_list(), "name": o.get_name(), "family": o.get_family() or "",
            "distro": o.get_distro() or "", "version": o.get_version() or "",
            "released": o.get_release_date_string() or "", "eol": o.get_eol_date_string() or "",
            "devices": sorted(device(d) for d in items(o.get_all_devices())),
            "firmware": [[f.get_architecture(), f.get_firmware_type(), f.is_supported()]
                         for f in items(o.get_complete_firmware_list())],
            "minimum": resources(o.get_minimum_resources()),
            "recommended": resources(o.get_recommended_resources()),
            "network": resources(o.get_network_install_resources()),
            "urlarg": o.get_kernel_url_argument() or "",
        }
    return out


def discs(asked):
    lib, db = database()
    out = []
    for d in asked:
        m = lib.Media(id="disc")
        for key, value in d.items():
            if key == "volume-size":
                m.set_param_int64(key, value)
            elif value:
                m.set_param(key, value)
        # Not identify_media, which then looks for the disc's language and
        # crashes on a volume id of Windows without one.
        o, f = db.guess_os_from_media(m)
        out.append([
            o.get_id(), f.get_architecture(), f.get_kernel_path() or "", f.get_initrd_path() or "",
            str(f.get_live()), str(f.get_installer()), str(f.supports_installer_script()),
            str(f.get_installer() and f.get_installer_reboots()),
            str(f.get_installer() and f.get_eject_after_install()),
        ] if o else None)
    return out


def trees(asked):
    lib, db = database()
    out = []
    for d in asked:
        t = lib.Tree(id="tree")
        for key, value in d.items():
            if value:
                t.set_param(key, value)
        out.append([t.get_os().get_id()] if db.identify_tree(t) else None)
    return out


def machines(asked):
    sys.path.insert(0, "/usr/share/virt-manager")
    from virtinst import cli, virtinstall
    here = os.path.dirname(os.path.abspath(__file__))
    uri = ("__virtinst_test__test:///default,fakeuri=qemu:///system,"
           "caps=%s/capabilities.xml,domcaps=%s/domcapabilities.xml" % (here, here))
    conn = cli.getConnection(uri)
    out = []
    for args in asked:
        sys.argv = ["virt-install", "--connect", uri, "--print-xml", "--dry-run"] + args
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            virtinstall.main(conn=conn)
        out.append(text.getvalue())
    return out


verb = sys.argv[1]
answer = globals()[verb]() if verb == "systems" else globals()[verb](json.load(sys.stdin))
json.dump(answer, sys.stdout)
