"""Run the decoder, cache, sampling, graph and token-loop tests on emulated ARM64 processors.

    python scripts/arm64.py [--folder FOLDER] [pytest arguments]

Needs root, Debian, and its packages `debootstrap` and `qemu-user-static`. The first run makes an ARM64 Debian in FOLDER
and installs the lock file's aarch64 wheels there; later runs use it again. Tests of SmolLM2 are left out: emulated, one
of its prompts takes minutes. Emulation shows which numbers the ARM kernels compute, but not their speed.

Prints one verdict for each processor and a last one. The mounts are in a mount namespace of this process, so they end
with it, whatever ends it.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import environment

#: name -> QEMU's processor. The first has what Oryon has, as far as QEMU can: dotprod, i8mm, bf16, no SVE.
PROCESSORS = {"dotprod and i8mm": "max,sve=off,sme=off", "dotprod only": "neoverse-n1"}
#: What computes logits, keeps them or chooses from them. The other tests do not depend on the processor.
TESTS = (
    "tests/worker/decoders",
    "tests/builder/graphs",
    "tests/worker/test_sampling.py",
    "tests/worker/drafting",
    "tests/worker/test_sequence.py",
    "tests/worker/test_slots.py",
    "tests/worker/test_token_loop.py",
    "tests/worker/test_token_loop_failures.py",
    "tests/worker/grammar/test_constraint.py",
)
#: The static decoder runs on the NPU and its emulator, which is for x86 only.
IGNORED = (
    "tests/worker/decoders/static",
    "tests/builder/graphs/test_static.py",
    "tests/builder/graphs/test_static_products.py",
)
PYTEST = """
import sys, pytest
class WithoutSmolLM2:
    def pytest_collection_modifyitems(self, config, items):
        large = [item for item in items if "smollm2" in item.nodeid or "expensive" in item.fixturenames]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]
sys.exit(pytest.main(sys.argv[1:], plugins=[WithoutSmolLM2()]))
"""
DEBS = "python3,libgomp1,libstdc++6,ca-certificates"
QEMU = "/usr/bin/qemu-aarch64-static"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
NAME = f"npu-gateway-arm64-{os.getpid()}"  # one for each run, so that a run can end while another one needs its own
#: ELF, 64 bits, little-endian, executable or shared, machine 183 (AArch64). F: the kernel keeps the interpreter open.
MAGIC = rb"\x7fELF\x02\x01\x01" + rb"\x00" * 9 + rb"\x02\x00\xb7\x00"
MASK = rb"\xff" * 7 + rb"\x00" + rb"\xff" * 8 + rb"\xfe\xff\xff\xff"
CPUINFO = "".join(
    f"processor\t: {number}\nFeatures\t: fp asimd aes crc32 atomics fphp asimdhp asimdrdm asimddp\n"
    "CPU implementer\t: 0x51\nCPU architecture: 8\nCPU variant\t: 0x2\nCPU part\t: 0x001\nCPU revision\t: 1\n\n"
    for number in (0, 1)
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the decoder tests on emulated ARM64 processors.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "npu-gateway-arm64")
    arguments, pytest_arguments = parser.parse_known_args()
    root = arguments.folder.resolve() / "root"
    packages = make_root(root)
    install_wheels(root, packages)
    mount(root)
    copy_repository(root / "tmp/repo")
    with binary_format():
        verdicts = [run(root, name, cpu, pytest_arguments) for name, cpu in PROCESSORS.items()]
    print(f"arm64: passed on {sum(verdicts)} of {len(verdicts)} processors")
    return 0 if all(verdicts) else 1


def check_machine() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit("arm64: needs Linux and root, for chroot and mount.")
    missing = [program for program in ("debootstrap", "apt-get", "unshare", QEMU) if not shutil.which(program)]
    if missing:
        sys.exit(f"arm64: missing {', '.join(missing)}. On Debian: apt-get install debootstrap qemu-user-static")


def make_root(root: Path) -> Path:
    """Make the ARM64 Debian, from the mirror that apt uses here. Returns the folder of its Python packages."""
    if not (root / "ready").exists():
        shutil.rmtree(root, ignore_errors=True)
        shown = [
            "apt-get",
            "indextargets",
            "--format",
            "$(CODENAME) $(REPO_URI)",
            "Created-By: Packages",
            "Component: main",
        ]
        suite, mirror = subprocess.run(shown, check=True, capture_output=True, text=True).stdout.split()[:2]
        options = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={DEBS}"]
        subprocess.run(["debootstrap", *options, suite, str(root), mirror], check=True, stdout=subprocess.DEVNULL)
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):  # no maintainer script is necessary
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
        write_machine(root)
        (root / "ready").touch()
    python = (root / "usr/bin/python3").readlink().name
    return root / "usr/local/lib" / python / "dist-packages"


def write_machine(root: Path) -> None:
    """Files of /sys and /proc as on an ARM machine: ONNX Runtime's import crashes with those of x86."""
    cpus = root / "sys/devices/system/cpu"
    for number in (0, 1):
        topology = cpus / f"cpu{number}/topology"
        topology.mkdir(parents=True, exist_ok=True)
        (topology / "core_id").write_text(f"{number}\n", encoding="ascii")
        (topology / "physical_package_id").write_text("0\n", encoding="ascii")
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0-1\n", encoding="ascii")
    (root / "cpuinfo").write_text(CPUINFO, encoding="ascii")


def install_wheels(root: Path, packages: Path) -> None:
    """Install the test lock's wheels for aarch64 Linux, with pip's own index and the lock's hashes."""
    stamp, digest = root / "wheels", environment.digest("test")
    if stamp.exists() and stamp.read_text(encoding="ascii") == digest:
        return
    shutil.rmtree(packages, ignore_errors=True)
    version = packages.parent.name.removeprefix("python")
    lock = root / "lock.txt"
    lock.write_text("".join(requirements(version)), encoding="utf-8")
    tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + [
        "--platform=manylinux2014_aarch64"
    ]
    tags += [f"--python-version={version}", "--implementation=cp"]
    tags += [f"--abi={abi}" for abi in ("cp" + version.replace(".", ""), "abi3", "none")]
    options = [
        "-qq",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--no-compile",
    ]
    pip = [sys.executable, "-m", "pip", "install", *options, *tags]
    subprocess.run([*pip, "--target", str(packages), "-r", str(lock)], check=True)
    stamp.write_text(digest, encoding="ascii")


def requirements(version: str) -> Iterator[str]:
    """The entries of the test lock for aarch64 Linux, with their hashes and without markers."""
    from packaging.markers import Marker

    target = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"}
    target |= {"python_version": version, "python_full_version": f"{version}.0"}
    lock = (environment.ROOT / environment.LOCKS["test"]).read_text(encoding="utf-8")
    for pin, marker, hashes in re.findall(
        r"^(\w[^ ]*==[^ ;]+)(?: ; (.+?))? \\\n((?:    --hash.*\n)+)", lock, re.MULTILINE
    ):
        if not marker or Marker(marker).evaluate(target):
            yield f"{pin} \\\n{hashes}"


def copy_repository(target: Path) -> None:
    """Copy the files that Git tracks or would add, into memory."""
    listed = ["git", "-C", str(environment.ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        source, copy = environment.ROOT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def mount(root: Path) -> None:
    """Mount what the tests need, in this process's mount namespace only."""
    for options in (
        ("-t", "proc", "proc", str(root / "proc")),
        ("--bind", str(root / "cpuinfo"), str(root / "proc/cpuinfo")),
        ("--bind", "/dev", str(root / "dev")),
        ("-t", "tmpfs", "tmpfs", str(root / "tmp")),
    ):
        subprocess.run(["mount", *options], check=True)


@contextmanager
def binary_format() -> Iterator[None]:
    """Let the kernel start ARM64 programs with QEMU: tests start processes."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    entry = f":{NAME}:M::".encode() + MAGIC + b":" + MASK + f":{QEMU}:F".encode()
    (BINFMT / "register").write_bytes(entry)
    try:
        yield
    finally:
        (BINFMT / NAME).write_text("-1", encoding="ascii")


def run(root: Path, name: str, cpu: str, arguments: list[str]) -> bool:
    """Run the tests on one processor. Prints the verdict; returns True if all tests passed."""
    ignored = [f"--ignore={path}" for path in IGNORED]
    tests = TESTS if all(argument.startswith("-") for argument in arguments) else ()
    options = ["-q", "-p", "no:cacheprovider", *ignored, *arguments, *tests]
    process = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    }
    started = time.monotonic()
    chroot = ["/usr/sbin/chroot", str(root), "/usr/bin/python3", "-c", "import os; os.chdir('/tmp/repo')\n" + PYTEST]
    code = subprocess.call([*chroot, *options], env={**process, "QEMU_CPU": cpu})
    print(
        f"arm64: {name} ({cpu}): {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return code == 0


if __name__ == "__main__":
    if not os.environ.get("NPU_GATEWAY_ARM64"):
        check_machine()
        os.environ["NPU_GATEWAY_ARM64"] = "in its own mount namespace"
        environment.become(["/usr/bin/unshare", "--mount", str(environment.ensure("test")), *sys.argv])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("arm64: interrupted")
