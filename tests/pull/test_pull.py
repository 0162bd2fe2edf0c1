"""`pull` for each kind of source, against a server that plays AI Hub's bucket and the Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.bundles import disk
from gateway.bundles.bundle import is_of_machine, load_bundle
from gateway.bundles.hashes import check_hashes
from gateway.bundles.identify import SOURCES
from gateway.config.file import load_config
from gateway.errors import BundleError, ConfigError, GatewayError
from gateway.pull import install
from gateway.pull.config_edit import add_model, find_user_config
from gateway.pull.download import Downloader
from gateway.pull.job import Surroundings
from gateway.pull.pull import Pulled, pull
from gateway.qnn.chips import CHIPS
from tests.bundles.test_identify import LAYOUTS, REFUSED
from tests.support.model_server import ModelServer
from tests.support.small_disk import small_disk
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf

MB = 1 << 20


class Desk:
    """One folder with config.toml and models/, and what `pull` lines, showed and built there."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config.toml"
        self.models = folder / "models"
        self.lines: list[str] = []
        self.stages: dict[str, tuple[int, int]] = {}
        self.built: list[tuple[str, str]] = []
        self.fault: GatewayError | None = None

    def pull(self, text: object, name: str | None = None, *, edit: bool = True) -> Pulled:
        downloader = Downloader(lambda seconds: None)
        user = find_user_config(self.config)
        try:
            around = Surroundings(
                user=user,
                report=lambda stage, done, total: self.stages.update({stage: (done, total)}),
                say=self.lines.append,
                find_chip=lambda: CHIPS[0],
                build=self._build,
                downloader=downloader,
            )
            pulled = pull(str(text), name, around)
        finally:
            downloader.close()
        if edit:
            add_model(user, pulled.name, pulled.table)
        return pulled

    def _build(self, name: str, source: str) -> None:
        if self.fault:
            raise self.fault
        self.built.append((name, source))

    def refusal(self, text: object, name: str | None = None) -> str:
        """The message of a pull that must fail, and leave nothing that another program can see."""
        before = self.names()
        with pytest.raises(GatewayError) as caught:
            self.pull(text, name)
        assert self.names() == before
        return caught.value.message

    def names(self) -> list[str]:
        return (
            sorted(path.name for path in self.models.iterdir() if path.name != ".pull") if self.models.exists() else []
        )

    def left(self) -> list[str]:
        """What is kept of downloads."""
        folder = self.models / ".pull"
        return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def hub(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield server


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle as publishers zip it: in one folder."""
    path = tmp_path_factory.mktemp("packed") / "tiny.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(tiny.iterdir()):
            if file.is_file() and file.name != "hashes.json" and not is_of_machine(file.name):
                opened.write(file, f"tiny-w4a16/{file.name}")
    return path.read_bytes()


def names_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestUrl:
    def test_zip_is_installed_and_configured(self, server: ModelServer, desk: Desk, packed: bytes, tiny: Path) -> None:
        url = server.add("a/tiny-genie-w4a16-x_elite.zip", packed)
        assert desk.pull(url).name == "tiny"
        folder = desk.models / "tiny"
        assert check_hashes(folder) == [] and load_bundle(folder).config == load_bundle(tiny).config
        assert load_config(desk.config, {}).models["tiny"].path == str(folder)  # type: ignore[union-attr]
        assert desk.names() == ["tiny"] and desk.left() == []
        assert desk.stages["downloading tiny-genie-w4a16-x_elite.zip"] == (len(packed), len(packed))
        assert desk.lines == ["licence of tiny: not stated by the source"]

    def test_second_pull_downloads_nothing(self, server: ModelServer, desk: Desk, packed: bytes) -> None:
        url = server.add("tiny.zip", packed)
        desk.pull(url)
        desk.config.unlink()
        assert desk.pull(url).table == {"path": "tiny"}
        assert len(server.requests) == 1
        assert "tiny is in" in desk.lines[-1] and "tiny" in load_config(desk.config, {}).models

    def test_interrupted_download_continues(self, server: ModelServer, desk: Desk, packed: bytes) -> None:
        url = server.add("tiny.zip", packed, cuts=[100_000] + [0] * 8)
        assert "the same command continues the download" in desk.refusal(url)
        assert desk.left() == ["tiny.zip.json", "tiny.zip.part", "url"]
        desk.pull(url)
        assert sum(server.sent_bytes("tiny.zip")) == len(packed) and desk.left() == []

    def test_other_address_for_a_name_does_not_use_the_part(
        self, server: ModelServer, desk: Desk, packed: bytes
    ) -> None:
        desk.refusal(server.add("a/tiny.zip", bytes(len(packed)), cuts=[100_000] + [0] * 8))
        desk.pull(server.add("b/tiny.zip", packed))
        assert check_hashes(desk.models / "tiny") == []

    def test_page_in_place_of_a_file_is_refused(self, server: ModelServer, desk: Desk) -> None:
        message = desk.refusal(server.add("tiny.zip", b"<html>Log in</html>"))
        assert "tiny.zip is neither a zip nor a GGUF file" in message and desk.left() == []

    def test_damaged_zip_is_downloaded_again(self, server: ModelServer, desk: Desk, packed: bytes) -> None:
        wrong = bytearray(packed)
        wrong[len(packed) // 2] ^= 1
        url = server.add("tiny.zip", bytes(wrong))
        assert "damaged" in desk.refusal(url) and desk.left() == []
        server.add("tiny.zip", packed)
        desk.pull(url)
        assert check_hashes(desk.models / "tiny") == []

    def test_gguf_is_built_and_kept(self, server: ModelServer, desk: Desk, tmp_path: Path) -> None:
        content = write_tiny_gguf(tmp_path / "x.gguf").read_bytes()
        url = server.add("Tiny-Q8_0.gguf", content)
        pulled = desk.pull(url)
        assert pulled.table == {"source": "models/tiny-q8_0.gguf"}
        assert (desk.models / "tiny-q8_0.gguf").read_bytes() == content
        assert load_config(desk.config, {}).models["tiny-q8_0"].source == str(desk.models / "tiny-q8_0.gguf")  # type: ignore[union-attr]
        assert [name for name, _ in desk.built] == ["tiny-q8_0"] and desk.left() == []
        desk.pull(url)
        assert len(server.requests) == 1

    def test_failed_build_leaves_no_model(self, server: ModelServer, desk: Desk, tmp_path: Path) -> None:
        desk.fault = BundleError("It has another architecture.")
        url = server.add("t.gguf", write_tiny_gguf(tmp_path / "x.gguf").read_bytes())
        assert desk.refusal(url) == "It has another architecture."
        assert not desk.config.exists()

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("http://example.com/m.zip", "is not protected. Write https://"),
            ("ftp://example.com/m.zip", "is no address that can be downloaded"),
            ("https:///m.zip", "is no address that can be downloaded"),
            ("hf:lonely", "Write hf:ORG/REPO"),
            ("hf:a/../b", "Write hf:ORG/REPO"),
            ("nowhere/at/all.zip", "There is no file or folder"),
        ],
    )
    def test_wrong_text_is_a_mistake_of_the_command_line(self, desk: Desk, text: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            desk.pull(text)

    def test_name_must_be_a_folder(self, desk: Desk) -> None:
        for name in ("..", "a/b", "con", ".hidden", "x" * 81, "a."):
            assert "cannot be a model's name" in desk.refusal("https://example.com/m.zip", name)


GENIE = '{"dialog": {"type": "basic"}}'


def made_for(architecture: int, soc: int, qairt: str) -> str:
    attributes = {"name": "x", "htp_version": architecture, "soc_model": soc}
    return json.dumps({"chipset_attributes": attributes, "tool_versions": {"qairt": qairt}})


@pytest.mark.parametrize(("layout", "files"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_published_layout_is_installed_or_refused(
    server: ModelServer, desk: Desk, tmp_path: Path, layout: str, files: dict[str, str]
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        for name, content in {"LICENSE.txt": "", **files}.items():
            opened.writestr(f"inner/{name}", content or "x")  # an empty file is refused
    url = server.add("m.zip", (tmp_path / "x.zip").read_bytes())
    if layout in REFUSED or layout in SOURCES:
        assert desk.refusal(url).startswith("m ") and desk.left() == []
        return
    assert desk.pull(url).table == {"path": "m"}
    assert {"LICENSE.txt", *files} <= names_of(desk.models / "m") and check_hashes(desk.models / "m") == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"m/genie_config.json": '{"dialog": {"embedding": {"size": 8}}}', "m/a.bin": ""}, "m is a vision model"),
            ({"m/weights.dlc": ""}, "m is a .dlc model"),
            ({"m/README.md": ""}, "m is no model bundle"),
            ({"m/model.gguf": "GGUF"}, "m holds weights and no bundle. Unpack it"),
            ({"m/genai_config.json": "{"}, "m: genai_config.json cannot be read"),
            ({"m/genie_config.json": GENIE, "m/metadata.json": made_for(79, 69, "2.45.0")}, "m is compiled for x (Hex"),
            ({"m/genie_config.json": GENIE, "m/a.bin": "version https://git-lfs"}, "m: a.bin is a Git LFS pointer"),
            ({"m/genie_config.json": GENIE, "m/a.bin": ""}, "m: a.bin is empty"),
        ],
    )
    def test_layout_that_is_not_served_leaves_nothing(
        self, server: ModelServer, desk: Desk, tmp_path: Path, files: dict[str, str], words: str
    ) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)
        message = desk.refusal(server.add("m.zip", (tmp_path / "x.zip").read_bytes()))
        assert message.startswith(words), message
        assert desk.left() == [] and not desk.config.exists()

    def test_newer_runtime_keeps_the_download_for_the_upgrade(
        self, server: ModelServer, desk: Desk, tmp_path: Path
    ) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
            opened.writestr("m/genie_config.json", GENIE)
            opened.writestr("m/metadata.json", made_for(73, 60, "99.1.0"))
        message = desk.refusal(server.add("m.zip", (tmp_path / "x.zip").read_bytes()))
        assert message.startswith("m was made with QAIRT 99.1.0") and "upgrade onnxruntime-qnn" in message
        assert "m.zip" in desk.left() and not desk.config.exists()

    def test_dangerous_zip_leaves_nothing(self, server: ModelServer, desk: Desk, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
            opened.writestr("m/genai_config.json", "{}")
            opened.writestr("m/../../../evil", "")
        assert "leads out of the folder" in desk.refusal(server.add("m.zip", (tmp_path / "x.zip").read_bytes()))
        assert desk.left() == [] and not (tmp_path / "evil").exists()

    def test_too_little_memory_is_found_before_the_download(
        self, server: ModelServer, desk: Desk, packed: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(install.psutil, "virtual_memory", lambda: SimpleNamespace(total=1_000_000_001))
        message = desk.refusal(server.add("tiny.zip", packed))
        assert "tiny needs about 1.0 GB of memory, and this machine has 1.0 GB. Choose a smaller model" in message
        assert (desk.models / ".pull" / "tiny" / "tiny.zip.part").exists() is False

    def test_too_little_disk_for_zip_and_content_is_found_before_the_download(
        self, server: ModelServer, tmp_path: Path
    ) -> None:
        with small_disk(tmp_path / "small", 100 * MB) as disk:
            desk = Desk(disk.folder)
            message = desk.refusal(server.add("m.zip", b"PK\x03\x04" + bytes(30 * MB)))
            assert "m, with its unpacked files, needs about" in message and "are free" in message
            assert desk.left() == []

    def test_disk_that_gets_full_keeps_the_download(
        self, server: ModelServer, tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It looks large enough, and gets full while the zip is unpacked. With more space, nothing is sent again."""
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=1 << 50))
        with small_disk(tmp_path / "small", len(packed) * 3 // 2) as small:
            desk, url = Desk(small.folder), server.add("tiny.zip", packed)
            message = desk.refusal(url)
            assert "No space left on device. Free some space there and start again" in message
            assert desk.left() == ["tiny.zip", "url"]
            small.resize(64 * MB)
            desk.pull(url)
            assert len(server.requests) == 1 and check_hashes(desk.models / "tiny") == []

    @pytest.mark.parametrize("free", [0, 8, 60, 120, 200])
    def test_disk_full_at_any_size_is_one_line(
        self, server: ModelServer, tmp_path: Path, packed: bytes, monkeypatch: pytest.MonkeyPatch, free: int
    ) -> None:
        """`free` KB more than the folders need. The zip and its content have about 150 KB each."""
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=1 << 50))
        with small_disk(tmp_path / "small", 64 * 1024 + free * 1024) as small:
            message = Desk(small.folder).refusal(server.add("tiny.zip", packed))
        assert "No space left on device. Free some space there" in message

    def test_other_model_of_that_name_is_not_replaced(self, server: ModelServer, desk: Desk, packed: bytes) -> None:
        desk.pull(server.add("a/tiny.zip", packed))
        other = server.add("b/tiny.zip", packed)
        assert "has another model 'tiny'. Choose a name with --as" in desk.refusal(other)
        assert desk.pull(other, "second").name == "second"
        desk.config.write_text('[models.third]\nengine = "scripted"\n', encoding="utf-8")
        assert "config.toml has another model 'third'" in desk.refusal(other, "third")

    def test_configured_path_without_its_folder_is_filled(self, server: ModelServer, desk: Desk, packed: bytes) -> None:
        text = '[models.tiny]  # mine\npath = "tiny"\nmax_sequences = 2\n'
        desk.config.write_text(text, encoding="utf-8")
        desk.pull(server.add("tiny.zip", packed))
        assert desk.config.read_text(encoding="utf-8") == text and desk.names() == ["tiny"]


class TestHub:
    @pytest.fixture
    def repo(self, hub: ModelServer, tiny: Path) -> dict[str, bytes]:
        files = {
            file.name: file.read_bytes()
            for file in tiny.iterdir()
            if file.is_file() and file.name != "hashes.json" and not is_of_machine(file.name)
        }
        hub.repos["org/Tiny-NPU"] = files | {".gitattributes": b"x", "README.md": b"hi"}
        hub.cards["org/Tiny-NPU"] = {"license": "apache-2.0"}
        return hub.repos["org/Tiny-NPU"]

    def test_bundle_is_copied_file_by_file(self, hub: ModelServer, desk: Desk, repo: dict[str, bytes]) -> None:
        assert desk.pull("hf:org/Tiny-NPU").table == {"path": "tiny-npu"}
        folder = desk.models / "tiny-npu"
        assert check_hashes(folder) == []
        assert {name for name in names_of(folder) if not name.startswith(".")} - {"hashes.json"} == set(repo) - {
            ".gitattributes"
        }
        assert desk.lines == ["licence of tiny-npu: apache-2.0"] and desk.left() == []
        total = sum(map(len, repo.values())) - 1
        assert desk.stages["downloading org/Tiny-NPU"] == (total, total)
        assert {value for _, value in hub.authorizations} == {"Bearer secret"}
        assert not any(path.startswith("cdn/") for path, _ in hub.authorizations)

    def test_what_a_killed_pull_left_is_no_part_of_the_bundle(
        self, hub: ModelServer, desk: Desk, repo: dict[str, bytes]
    ) -> None:
        """Killed when a file was complete, and before the note about it was removed."""
        hub.fault_of("org/Tiny-NPU/resolve/" + "c" * 40 + "/README.md").status = 404
        desk.refusal("hf:org/Tiny-NPU")
        [done] = (desk.models / ".pull" / "tiny-npu" / "files").glob("genai_config.json")
        done.with_name("genai_config.json.json").write_text("{}", encoding="utf-8")
        hub.faults.clear()
        desk.pull("hf:org/Tiny-NPU")
        assert "genai_config.json.json" not in names_of(desk.models / "tiny-npu")

    def test_wrong_hash_of_a_file_is_found(self, hub: ModelServer, desk: Desk, repo: dict[str, bytes]) -> None:
        name = max(repo, key=lambda each: len(repo[each]))
        hub.fault_of(f"cdn/org/Tiny-NPU/{hashlib.sha256(repo[name]).hexdigest()}").flips = 2
        assert f"{name} has another sha256" in desk.refusal("hf:org/Tiny-NPU")

    def test_repository_with_several_bundles_names_them(
        self, hub: ModelServer, desk: Desk, repo: dict[str, bytes]
    ) -> None:
        hub.repos["org/two"] = {f"{folder}/{name}": data for folder in ("npu/a", "cpu") for name, data in repo.items()}
        assert "org/two has 2 bundles. Choose one: hf:org/two/cpu, hf:org/two/npu/a." in desk.refusal("hf:org/two")
        assert desk.pull("hf:org/two/npu").name == "two"
        assert check_hashes(desk.models / "two") == []
        assert "has no gpu" in desk.refusal("hf:org/two/gpu", "x")

    def test_gguf_by_quant_by_file_and_alone(self, hub: ModelServer, desk: Desk, tmp_path: Path) -> None:
        content = write_tiny_gguf(tmp_path / "x.gguf").read_bytes()
        hub.repos["org/T-GGUF"] = {
            "T-IQ2_M.gguf": content + b"2",
            "T-Q4_K_M.gguf": content + b"4",
            "T-Q8_0.gguf": content + b"8",
            "mmproj-T-Q8_0.gguf": content,
        }
        kept = {}
        for text, name in (("hf:org/T-GGUF:q8_0", "a"), ("hf:org/T-GGUF/T-IQ2_M.gguf", "b"), ("hf:org/T-GGUF", None)):
            pulled = desk.pull(text, name)
            kept[pulled.name] = (desk.models / f"{pulled.name}.gguf").read_bytes()[-1:]
        assert kept == {"a": b"8", "b": b"2", "t": b"4"}
        message = desk.refusal("hf:org/T-GGUF:Q5_K_M", "c")
        assert message.startswith("org/T-GGUF has no GGUF file for Q5_K_M. It has T-IQ2_M.gguf (0 MB), T-Q4_K_M.gguf")
        assert [line for line in desk.lines if "chosen" in line] == [
            f"the chosen file of org/T-GGUF is T-{name}.gguf (0 MB)" for name in ("Q8_0", "Q4_K_M")
        ]

    @pytest.mark.parametrize("text", ["", ":q6_k", "/q6_k/T-00002-of-00002.gguf"])
    def test_split_gguf_becomes_a_source_of_all_parts(self, hub: ModelServer, desk: Desk, text: str) -> None:
        parts = {f"q6_k/T-{part:05}-of-00002.gguf": b"GGUF" for part in (1, 2)}
        hub.repos["org/T-GGUF"] = parts | {"T-IQ2_M.gguf": b"GGUF"}
        source = "hf:org/T-GGUF/q6_k/T-00001-of-00002.gguf"
        assert desk.pull(f"hf:org/T-GGUF{text}", "t").table == {"source": source} and desk.built == [("t", source)]

    def test_weights_come_before_gguf_files(self, hub: ModelServer, desk: Desk) -> None:
        hub.repos["org/Tiny"] = {"config.json": b"{}", "model.safetensors": bytes(2000), "tiny.gguf": b"GGUF"}
        assert desk.pull("hf:org/Tiny").table == {"source": "hf:org/Tiny"}

    def test_weights_become_a_source(self, hub: ModelServer, desk: Desk) -> None:
        hub.repos["org/Tiny"] = {"config.json": b"{}", "model.safetensors": bytes(2000)}
        assert desk.pull("hf:org/Tiny").table == {"source": "hf:org/Tiny"}
        assert desk.built == [("tiny", "hf:org/Tiny")]
        assert desk.pull("hf:org/Tiny").table == {"source": "hf:org/Tiny"}
        assert list(load_config(desk.config, {}).models) == ["tiny"]

    def test_zip_in_a_repository(self, hub: ModelServer, desk: Desk, packed: bytes) -> None:
        hub.repos["org/zips"] = {"v1/tiny.zip": packed}
        assert desk.pull("hf:org/zips/v1/tiny.zip").name == "tiny"
        assert check_hashes(desk.models / "tiny") == []

    def test_hub_that_is_not_there(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", "http://127.0.0.1:1")
        message = desk.refusal("hf:org/Tiny")
        assert message.startswith("org/Tiny could not be read (") and message.endswith(
            "Check its name and the network."
        )

    def test_missing_repository_and_empty_one(self, hub: ModelServer, desk: Desk) -> None:
        hub.repos["org/empty"] = {"README.md": b""}
        assert "There is no org/nothing on the Hub" in desk.refusal("hf:org/nothing")
        assert "org/empty has no bundle, no GGUF file and no safetensors" in desk.refusal("hf:org/empty")
        hub.repos["qualcomm/Qwen3-4B"] = {"release_assets.json": b"{}", "README.md": b""}
        assert desk.refusal("hf:qualcomm/Qwen3-4B").endswith("Run `npu-gateway pull qwen3-4b`.")
        hub.fault_of("api/models/org/gated/revision/main").status = 403
        hub.fault_of("api/models/org/gated/revision/main").headers = {"X-Error-Code": "GatedRepo"}
        assert "org/gated needs your consent: accept its licence" in desk.refusal("hf:org/gated")

    def test_dangerous_file_name_is_refused(self, hub: ModelServer, desk: Desk) -> None:
        hub.repos["org/evil"] = {"genai_config.json": b"{}", "sub/con.json": b""}
        assert "a file cannot be stored, because its name is the name of a device on Windows" in desk.refusal(
            "hf:org/evil"
        )


class TestPath:
    def test_zip_on_the_disk_is_unpacked_and_stays(self, desk: Desk, tmp_path: Path, packed: bytes) -> None:
        path = tmp_path / "tiny.zip"
        path.write_bytes(packed)
        assert desk.pull(path).table == {"path": "tiny"}
        assert path.exists() and check_hashes(desk.models / "tiny") == []

    def test_folder_is_served_where_it_is(self, desk: Desk, tiny: Path) -> None:
        for _ in range(2):
            assert desk.pull(tiny, "mine").table == {"path": str(tiny)}
        assert desk.names() == [] and load_config(desk.config, {}).models["mine"].path == str(tiny)  # type: ignore[union-attr]

    def test_weights_on_the_disk_become_a_source(self, desk: Desk, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        gguf = write_tiny_gguf(tmp_path / "w" / "t.gguf")
        folder = write_tiny_folder(tmp_path / "hf")
        assert desk.pull(gguf, "a").table == {"source": str(gguf)}
        assert desk.pull(gguf.parent, "b").table == {"source": str(gguf)}
        assert desk.pull(folder, "c").table == {"source": str(folder)}
        assert desk.built == [("a", str(gguf)), ("b", str(gguf)), ("c", str(folder))]

    def test_folder_that_is_no_model_is_refused(self, desk: Desk, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "empty is no model bundle" in desk.refusal(tmp_path / "empty")


def test_origin_is_recorded(server: ModelServer, desk: Desk, packed: bytes) -> None:
    url = server.add("tiny.zip", packed)
    desk.pull(url)
    origin = json.loads((desk.models / "tiny" / ".pulled.json").read_bytes())
    assert origin == {"source": url, "url": url, "licence": "", "chip": "", "published_tokens_per_s": None}


def test_truncated_binary_is_named_and_the_model_is_not_ready(
    desk: Desk, published_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(published_bundle, tmp_path / "theirs"))
    assert desk.pull(bundle).is_complete and not any("damaged" in line for line in desk.lines)
    binary = sorted(bundle.glob("*.bin"))[1]
    binary.write_bytes(binary.read_bytes()[:-1])
    assert not desk.pull(bundle, edit=False).is_complete
    assert desk.lines[-1].startswith(f"damaged: theirs/{binary.name} is damaged or no context binary")
