"""The servers themselves. Those which the machine lacks are unpacked from the distribution's packages into the
user's cache folder, so nothing is installed, no service starts and no rights are needed. Also a command."""

import fcntl
import glob
import os
import re
import shutil
import subprocess
import sys

CACHE = os.environ.get("COUNTERSIGN_CACHE", os.path.expanduser("~/.cache/countersign"))
DEBS = f"{CACHE}/debs"
ROOT = f"{DEBS}/root"
HERE = os.path.dirname(os.path.abspath(__file__))
# apache2 without -bin would bring configuration and services, which are not wanted.
PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "apache2": "apache2-bin", "stunnel": "stunnel4",
            "postgres": "postgresql", "mariadbd": "mariadb-server-core"}
NAMES = {"stunnel": ["stunnel4", "stunnel"], "apache2": ["apache2", "httpd"]}


def find(tool):
    """The path of an executable: of the machine, or unpacked."""
    folders = ["/usr/sbin", "/usr/local/sbin", f"{ROOT}/usr/sbin", f"{ROOT}/usr/bin"]
    if tool in ("postgres", "initdb"):
        folders += sorted(glob.glob("/usr/lib/postgresql/*/bin") + glob.glob(f"{ROOT}/usr/lib/postgresql/*/bin"))
    for name in NAMES.get(tool, [tool]):
        if path := shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", "")] + folders)):
            return os.path.realpath(path)
    return None


def environment():
    """For unpacked programs, whose libraries are unpacked beside them."""
    libraries = glob.glob(f"{ROOT}/usr/lib/*-linux-gnu") + glob.glob(f"{ROOT}/lib/*-linux-gnu")
    old = os.environ.get("LD_LIBRARY_PATH", "")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries + [old] * bool(old))}


def open_to_all(path):
    """Whether another user may run this."""
    while path != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


def modules(server):
    """Apache's modules are beside its program, wherever that is."""
    prefix = ROOT if server.startswith(ROOT) else ""
    return f"{prefix}/usr/lib/apache2/modules"


def unpack(packages, say):
    """Downloads what `apt-get install` would, and unpacks it. The lists may be old: then once more."""
    os.makedirs(ROOT, exist_ok=True)
    for attempt in (1, 2):
        plan = subprocess.run(["apt-get", "install", "-s", "--no-install-recommends", *packages],
                              capture_output=True, text=True, timeout=60)
        wanted = re.findall(r"^Inst (\S+)", plan.stdout, re.MULTILINE)
        done = wanted and subprocess.run(["apt-get", "download", "-q", *wanted], cwd=DEBS, capture_output=True,
                                         text=True, timeout=300)
        if done and done.returncode == 0:
            break
        if attempt == 2:
            say(f"cannot download {packages}: {(done or plan).stderr.strip()[-500:]}")
            return
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        if not sudo or shutil.which("sudo"):
            subprocess.run([*sudo, "apt-get", "update", "-q"], capture_output=True, timeout=300)
    for package in glob.glob(f"{DEBS}/*.deb"):
        subprocess.run(["dpkg", "-x", package, ROOT], check=True, timeout=60)
        os.remove(package)


def servers(say=lambda text: print(text, file=sys.stderr)):
    """Name to path of everything that is there afterwards; fast when all is there already."""
    os.makedirs(CACHE, exist_ok=True)
    with open(f"{CACHE}/debs.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [package for tool, package in PACKAGES.items() if not find(tool)]
        if missing and shutil.which("apt-get") and shutil.which("dpkg"):
            unpack(missing, say)
    found = {tool: find(tool) for tool in [*PACKAGES, "initdb", "node", "java", "go", "openssl"]}
    beside = os.path.join(os.path.dirname(sys.executable), "envoy")
    found["envoy"] = os.environ.get("INTEROP_ENVOY") or (beside if os.path.exists(beside) else find("envoy"))
    found["python"] = sys.executable
    if os.geteuid() == 0 and found["postgres"] and not open_to_all(found["postgres"]):
        say(f"{found['postgres']} refuses to run as root and others cannot read it: set COUNTERSIGN_CACHE")
        found["postgres"] = None
    if found["go"]:
        found["goserver"] = build_go(found["go"], say)
    return found


def build_go(go, say):
    binary = f"{CACHE}/probe-goserver"
    sources = [f"{HERE}/apps/go/main.go", f"{HERE}/apps/go/go.mod"]
    if os.path.exists(binary) and all(os.path.getmtime(binary) >= os.path.getmtime(s) for s in sources):
        return binary
    done = subprocess.run([go, "build", "-buildvcs=false", "-o", binary, "."], cwd=f"{HERE}/apps/go",
                          capture_output=True, text=True, timeout=540)
    if done.returncode == 0:
        return binary
    say(f"go build: {done.stderr[-2000:]}")
    return None


if __name__ == "__main__":
    absent = 0
    for name, path in servers().items():
        print(f"{name}: {path or 'MISSING'}")
        absent += not path
    sys.exit(bool(absent))
