"""Gets a model by what the user wrote. The commands `pull` and `serve NAME` call this.

MODELS/.pull/NAME/   downloads of NAME that are not installed yet; a second pull continues them
MODELS/NAME/         the bundle, complete or not there
MODELS/NAME.gguf     weights that the bundle was built from
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from gateway.bundles.disk import write_error
from gateway.bundles.genie.config import bundle_folder
from gateway.bundles.identify import require_servable
from gateway.bundles.origin import Origin, read_origin
from gateway.bundles.preflight.preflight import newer_runtime
from gateway.bundles.replace import exclusive, finish_replacement
from gateway.config.tables import BundleModel, LocalModel, ModelConfig
from gateway.errors import BundleError, ConfigError, quote
from gateway.pull.job import Job, Surroundings, Table, gguf_path
from gateway.pull.names import check_model_name, fault_of
from gateway.pull.spec import CatalogSpec, PathSpec, Spec, UrlSpec, default_name, read_spec
from gateway.pull.stored import own_spelling
from gateway.qnn.device import runtime_version


class Pulled(Struct, frozen=True, kw_only=True):
    """A model that is on this machine now, and its table for the configuration."""

    name: str
    table: Table
    is_complete: bool = True


def pull(text: str, name: str | None, around: Surroundings) -> Pulled:
    """Download, check and install the model that `text` describes. The configuration is not changed.

    Args:
        name: of the model; None: from `text`.
    Raises BundleError or ConfigError with the next step. Nothing is left in the models folder then, except a download
    that the next pull continues.
    """
    spec, origin = read_spec(text), Origin(source=text, url="")
    if isinstance(spec, CatalogSpec):
        spec = CatalogSpec(own_spelling(spec.name, around.user.config))
    if isinstance(spec, CatalogSpec) and not _is_here(name or spec.name, around):
        spec, listed, origin = _from_catalog(spec.name, text, around)
        name = name or listed
    name = check_model_name(name or default_name(spec))
    job = Job(name, origin, around)
    with exclusive(job.work, lambda: around.say(f"waiting for another program that pulls {name}")):
        finish_replacement(job.folder)
        try:
            table = _existing(job, spec)
            if table is None:
                table = job.obtain(spec)
        except OSError as error:
            raise write_error(around.models_dir, error) from error
        except BaseException:
            job.clean_if_empty()
            raise
        job.clean()
    return Pulled(name=name, table=table, is_complete=job.is_complete)


def _is_here(name: str, around: Surroundings) -> bool:
    """True if the model was pulled or is built from a source, so that the catalog is not needed."""
    if fault_of(name):
        return False
    found = (around.models_dir / name).is_dir() or gguf_path(around.models_dir, name).is_file()
    return found or bool(_source(around.user.config.models.get(name)))


def _from_catalog(name: str, text: str, around: Surroundings) -> tuple[Spec, str, Origin]:
    """What to download, the model's name and its origin."""
    from gateway.pull.catalog.catalog import resolve

    entry = resolve(name, around.find_chip())
    if entry.kind != "text":
        raise BundleError(f"{entry.title} is not served: {entry.note or 'the gateway serves text models.'}")
    if not entry.url:
        raise BundleError(
            f"{entry.title} cannot be downloaded. {entry.note} `npu-gateway catalog {entry.name}` has the commands."
        )
    if refusal := newer_runtime(entry.title, entry.qairt, runtime_version()):
        raise BundleError(refusal)
    licence = " ".join(filter(None, (entry.licence, entry.licence_url)))
    spec = read_spec(entry.url) if entry.url.startswith("hf:") else UrlSpec(entry.url)
    published = entry.tokens_per_s
    origin = Origin(source=text, url=entry.url, licence=licence, chip=entry.chip, published_tokens_per_s=published)
    return spec, entry.name, origin


def _existing(job: Job, spec: Spec) -> Table | None:
    """The table of the model if it is there. None: it is not. Raises ConfigError if NAME is another model."""
    around, model = job.around, job.around.user.config.models.get(job.name)
    source = _source(model)
    if model is not None and not _is_slot(model, spec, job) and not job.has_source(source, spec):
        raise _taken(job, str(around.user.file))
    weights = job.gguf if job.gguf.is_file() else None
    if isinstance(spec, CatalogSpec) and source and not weights:
        return {"source": source}
    if weights is None and (not job.folder.is_dir() or source or _is_inside(spec, job.folder)):
        return None
    origin = read_origin(weights or job.folder)
    if not isinstance(spec, CatalogSpec) and (origin is None or job.text not in (origin.source, origin.url)):
        raise _taken(job, str(around.models_dir))
    around.say(f"{job.name} is in {around.models_dir} already")
    if weights:
        return job.built(weights)
    require_servable(job.folder)
    return {"path": job.name}


def _taken(job: Job, where: str) -> ConfigError:
    return ConfigError(
        f"{where} has another model {quote(job.name)}. Choose a name with --as, or remove that model with "
        f"`npu-gateway rm {job.name}`."
    )


def _is_inside(spec: Spec, folder: Path) -> bool:
    return isinstance(spec, PathSpec) and spec.path == folder


def _is_slot(model: ModelConfig, spec: Spec, job: Job) -> bool:
    """True if the model's table has the path that a pull of `spec` gives it."""
    if not isinstance(model, BundleModel) or _source(model):
        return False
    folder = bundle_folder(Path(model.path))
    return folder == job.folder or (isinstance(spec, PathSpec) and spec.path in (folder, folder.parent))


def _source(model: object) -> str:
    return model.source if isinstance(model, LocalModel) else ""
