"""Outputs of ``cxls analyze`` that others ask for or listen to, made from its settings."""

from collections.abc import Callable

from analyzer.indexing import Broadcast, CannotBind, IndexingSettings, IndexServer
from analyzer.panels import GivenGeometry
from analyzer.results import FrameResult
from cxls.cli import listening
from cxls.settings import AnalyzeSettings, BadSettings
from streamer.messages import SeriesMetadata
from streamer.validity import Validity

_NEED_A_LISTENER = ("index_images", "index_indexable", "index_geometry", "index_stream")


def open_indexing(
    settings: AnalyzeSettings,
    mask: Callable[[], Validity | None],
    geometry: GivenGeometry | None,
    hurry: Callable[[], bool],
) -> IndexServer | None:
    """Where indexers ask for hits, bound; ``None`` unless asked for. Raises ``BadSettings``.

    hurry: whether the run is to stop.
    """
    if settings.index_listen is None:
        for name in _NEED_A_LISTENER:
            if getattr(settings, name):
                option = name.replace("_", "-")
                raise BadSettings(f"--{option}: no hit is handed out; give --index-listen tcp://127.0.0.1:12322 too")
        return None
    for name in ("index_geometry", "index_stream"):
        path = getattr(settings, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise BadSettings(f"--{name.replace('_', '-')} {str(path)!a}: no such folder; make it first")
    try:
        server = IndexServer(
            IndexingSettings(
                address=settings.index_listen,
                images=settings.index_images,
                queue=settings.index_queue,
                indexable_only=settings.index_indexable,
                stream=settings.index_stream,
                geometry=settings.index_geometry,
            ),
            mask,
            geometry,
            hurry,
        )
    except CannotBind as error:
        raise BadSettings(f"--index-listen {error}") from None
    listening("indexing", server.router.address)
    return server


def open_broadcast(
    settings: AnalyzeSettings, header: Callable[[FrameResult], SeriesMetadata | None]
) -> Broadcast | None:
    """Where every record is published, bound; ``None`` unless asked for. Raises ``BadSettings``."""
    if settings.broadcast is None:
        return None
    try:
        publisher = Broadcast(settings.broadcast, header)
    except CannotBind as error:
        raise BadSettings(f"--broadcast {error}") from None
    listening("broadcast", publisher.address)
    return publisher
