"""How fast Gaussians are: figures are there, and what cannot run is said."""

from __future__ import annotations

from sfumato.bench.scene import run, splats


def test_figures_are_there_and_gsplat_is_where_it_can_run(monkeypatch):
    monkeypatch.setattr(splats, "GAUSSIANS", 20)
    monkeypatch.setattr(splats, "SIDE", 12)
    report = run(1, 0, "cpu", modules=(splats,))
    assert report.results["splat_ms"] > 0 and report.results["splat_only_ms"] > 0
    assert report.results["splat_gsplat_ms"] is None and "take the backend torch" in report.why["splat_gsplat_ms"]
