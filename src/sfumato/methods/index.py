"""Every method by its word: the one list of them, which commands, documents, benches and tests read.

Nothing is imported before it is asked for. A test holds the table against the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from sfumato.errors import SfumatoError, nowhere, unknown


@dataclass(frozen=True)
class Entry:
    """A method, its words, and where it is."""

    word: str
    home: str
    """Group, module and name, such as ``edit.masactrl:MasaCtrl``."""
    alias: str = ""
    """What the field calls it."""
    commands: tuple[str, ...] = ()
    """Those that take it, where not all do that take its group."""
    head: str = ""
    """Home of what it paints by, where it needs a head that ``sfumato train-head`` taught."""

    @property
    def group(self) -> str:
        return self.home.partition(".")[0]

    @property
    def module(self) -> ModuleType:
        return import_module(f"sfumato.methods.{self.home.partition(':')[0]}")

    @property
    def method(self) -> Any:
        """Its class; of what no command line can ask for, its function."""
        return getattr(self.module, self.home.partition(":")[2])

    @property
    def learner(self) -> Any:
        """The class that ``sfumato train-head`` makes of its word: its own, or that of the head that it paints by."""
        module, _, name = (self.head or self.home).partition(":")
        return getattr(import_module(f"sfumato.methods.{module}"), name)

    @property
    def is_function(self) -> bool:
        return self.home.partition(":")[2].islower()

    @property
    def presets(self) -> dict[str, Any]:
        """Other settings of it by their words: those of its authors that differ from the paper's."""
        kind = self.method
        return {k.lower().replace("_", "-"): v for k, v in vars(self.module).items() if k.isupper() and type(v) is kind}


PAINTING = ("edit", "control", "sets")
READING = ("perceive",)
DISTILLING = ("distill",)
LEARNING = ("personalise",)
STARTING = ("edit", "video", "plan")
"""Commands that take methods which start from a picture."""
HEADS = "train-head"
"""The one whose methods are the heads that they learn."""
CHAINED = {
    **dict.fromkeys(("generate", "panorama", "illusion", "edit", "video", "plan"), PAINTING),
    **dict.fromkeys(("distill2d", "lift"), DISTILLING),
    "learn": LEARNING,
    **dict.fromkeys(("segment", "match", "keypoints", "shapes", HEADS), READING),
}
"""Commands that take methods, and of which groups."""

METHODS = (
    Entry("blended-latents", "edit.blended_latents:BlendedLatents", commands=STARTING),
    Entry("collaborative-editing", "edit.collaborative_editing:CollaborativeEditing", "csd-edit", commands=STARTING),
    Entry("cross-image-attention", "edit.cross_image_attention:CrossImageAttention"),
    Entry("delta-denoising", "edit.delta_denoising:DeltaDenoising", "dds", commands=STARTING),
    Entry("diff-edit", "edit.diff_edit:DiffEdit", "diffedit", commands=STARTING),
    Entry("eye-for-an-eye", "edit.eye_for_an_eye:EyeForAnEye"),
    Entry("feature-transfer", "edit.feature_transfer:FeatureTransfer", commands=STARTING),
    Entry("flow-edit", "edit.flow_edit:FlowEdit", commands=STARTING),
    Entry("instruct-pix2pix", "edit.instruct_pix2pix:InstructPix2Pix", "ip2p", commands=STARTING),
    Entry("kv-edit", "edit.kv_edit:KVEdit", commands=STARTING),
    Entry("ledits", "edit.ledits:Ledits", commands=STARTING),
    Entry("masactrl", "edit.masactrl:MasaCtrl"),
    Entry("plug-and-play", "edit.plug_and_play:PlugAndPlay", "pnp"),
    Entry("prompt-to-prompt", "edit.prompt_to_prompt:PromptToPrompt", "p2p"),
    Entry("sdedit", "edit.sdedit:SDEdit", commands=STARTING),
    Entry("stable-flow", "edit.stable_flow:StableFlow"),
    Entry("attend-and-excite", "control.attend_and_excite:AttendAndExcite", "attend-excite"),
    Entry("box-diff", "control.box_diff:BoxDiff", "boxdiff"),
    Entry("classifier-guidance", "control.classifier_guidance:ClassifierGuidance"),
    Entry("dense-diffusion", "control.dense_diffusion:DenseDiffusion", "dense"),
    Entry("dynamic-thresholding", "control.dynamic_thresholding:DynamicThresholding"),
    Entry("given-attention", "control.given_attention:GivenAttention", "attention-injection"),
    Entry("layout-guidance", "control.layout_guidance:LayoutGuidance"),
    Entry("linguistic-binding", "control.linguistic_binding:LinguisticBinding"),
    Entry("llm-grounded", "control.llm_grounded:LlmGrounded"),
    Entry("perturbed-attention", "control.perturbed_attention:PerturbedAttention", "pag"),
    Entry("region-prompts", "control.region_prompts:RegionPrompts"),
    Entry("rich-text", "control.rich_text:RichText"),
    Entry("self-attention-guidance", "control.self_attention_guidance:SelfAttentionGuidance", "sag"),
    Entry("self-guidance", "control.self_guidance:SelfGuidance"),
    Entry("smoothed-energy", "control.smoothed_energy:SmoothedEnergy", "seg"),
    Entry("spatext", "control.spatext:SpaText", head="control.spatio_textual:SpaTextHead"),
    Entry("spatial-temporal", "control.spatial_temporal:SpatialTemporal"),
    Entry("structured-diffusion", "control.structured_diffusion:StructuredDiffusion"),
    Entry("universal-guidance", "control.universal_guidance:UniversalGuidance"),
    Entry("consi-story", "sets.consi_story:ConsiStory", "consistory"),
    Entry("fate-zero", "sets.fate_zero:FateZero", "fatezero"),
    Entry("free-init", "sets.free_init:FreeInit"),
    Entry("free-noise", "sets.free_noise:FreeNoise"),
    Entry("merge-attend-diffuse", "sets.merge_attend_diffuse:MergeAttendDiffuse", "mad"),
    Entry("multi-diffusion", "sets.multi_diffusion:MultiDiffusion", "multidiffusion"),
    Entry("pix2video", "sets.pix2video:Pix2Video"),
    Entry("shared-attention", "sets.shared_attention:SharedAttention"),
    Entry("spot-diffusion", "sets.spot_diffusion:SpotDiffusion"),
    Entry("style-aligned", "sets.style_aligned:StyleAligned"),
    Entry("sync-diffusion", "sets.sync_diffusion:SyncDiffusion"),
    Entry("sync-tweedies", "sets.sync_tweedies:SyncTweedies"),
    Entry("text2video-zero", "sets.text2video_zero:Text2VideoZero"),
    Entry("token-flow", "sets.token_flow:TokenFlow", "tokenflow"),
    Entry("clip-patches", "perceive.clip_patches:ClipPatches", commands=("train-head",)),
    Entry("diff-seg", "perceive.diff_seg:DiffSeg", "diffseg", commands=("segment",)),
    Entry("diff3f", "perceive.diff3f:Diff3F", commands=("shapes",)),
    Entry("diffews", "perceive.diffews:DiffewS", commands=("train-head",)),
    Entry("dift", "perceive.dift:DIFT", commands=("match", "train-head")),
    Entry("few-shot", "perceive.few_shot:FewShot", commands=("segment",)),
    Entry("graph-cut", "perceive.graph_cut:GraphCut", commands=("segment",)),
    Entry("label-efficient", "perceive.label_efficient:LabelEfficient", commands=("segment", "train-head")),
    Entry("landmark-regression", "perceive.landmark_regression:LandmarkRegression", commands=("train-head",)),
    Entry("normalised-cut", "perceive.normalised_cut:NormalisedCut", "diffcut", commands=("segment",)),
    Entry("optimal-transport", "perceive.optimal_transport:OptimalTransport", "ot", commands=("match",)),
    Entry("pacl", "perceive.pacl:PACL", commands=("train-head",)),
    Entry("prompt-embeddings", "perceive.prompt_embeddings:PromptEmbeddings", commands=("match",)),
    Entry("picie", "perceive.picie:PiCIE", commands=("train-head",)),
    Entry("propagation", "perceive.propagation:Propagation", commands=("segment",)),
    Entry("stego", "perceive.stego:STEGO", commands=("train-head",)),
    Entry("text-attribution", "perceive.text_attribution:TextAttribution", "daam", commands=("segment",)),
    Entry("unsupervised-keypoints", "perceive.unsupervised_keypoints:UnsupervisedKeypoints", commands=("keypoints",)),
    Entry("open-vocabulary", "perceive.open_vocabulary:label"),
    Entry("fourier-domain-adaptation", "perceive.fourier_domain_adaptation:fourier_domain_adaptation"),
    Entry("classifier-score-distillation", "distill.classifier_score_distillation:ClassifierScoreDistillation"),
    Entry(
        "collaborative-score-distillation", "distill.collaborative_score_distillation:CollaborativeScoreDistillation"
    ),
    Entry("delta-score", "distill.delta_score:DeltaScore"),
    Entry("entropic-score-distillation", "distill.entropic_score_distillation:EntropicScoreDistillation", "esd"),
    Entry("hifa", "distill.hifa:HiFA"),
    Entry("interval-score-matching", "distill.interval_score_matching:IntervalScoreMatching", "ism"),
    Entry("noise-free-score-distillation", "distill.noise_free_score_distillation:NoiseFreeScoreDistillation", "nfsd"),
    Entry("score-distillation", "distill.score_distillation:ScoreDistillation", "sds"),
    Entry("score-distillation-bridge", "distill.score_distillation_bridge:ScoreDistillationBridge"),
    Entry(
        "score-distillation-via-inversion",
        "distill.score_distillation_via_inversion:ScoreDistillationViaInversion",
        "sdi",
    ),
    Entry(
        "score-iterative-reconstruction",
        "distill.score_iterative_reconstruction:ScoreIterativeReconstruction",
        "sir",
    ),
    Entry("score-jacobian-chaining", "distill.score_jacobian_chaining:ScoreJacobianChaining", "sjc"),
    Entry(
        "variational-score-distillation", "distill.variational_score_distillation:VariationalScoreDistillation", "vsd"
    ),
    Entry("azimuth-inversion", "personalise.azimuth_inversion:AzimuthInversion"),
    Entry("break-a-scene", "personalise.break_a_scene:BreakAScene"),
    Entry("disentangled-inversion", "personalise.disentangled_inversion:DisentangledInversion"),
    Entry("encoder-tuning", "personalise.encoder_tuning:EncoderTuning", "e4t"),
    Entry("extended-textual-inversion", "personalise.extended_textual_inversion:ExtendedTextualInversion", "xti"),
    Entry("neural-inversion", "personalise.neural_inversion:NeuralInversion", "neti"),
    Entry("view-inversion", "personalise.view_inversion:ViewInversion", "view-neti"),
    Entry("custom-diffusion", "personalise.custom_diffusion:CustomDiffusion"),
    Entry("dream-booth", "personalise.dream_booth:DreamBooth", "dreambooth"),
    Entry("lora", "personalise.lora:LoRA"),
    Entry("reversion", "personalise.reversion:ReVersion"),
    Entry("textual-inversion", "personalise.textual_inversion:TextualInversion", "ti"),
)


def words(groups: Sequence[str] = PAINTING, aliases: bool = False, heads: bool = False, command: str = "") -> list[str]:
    """What a command line may ask for, or this command's; ``heads``: also what learns a head, of whatever group."""
    asked = [e for e in METHODS if (e.group in groups or (heads and e.head)) and not e.is_function]
    asked = [e for e in asked if not (command and e.commands) or command in e.commands]
    return [e.word for e in asked] + [e.alias for e in asked if aliases and e.alias]


def find(word: str) -> Entry:
    """The method of a word. ``SfumatoError`` that lists the methods for a word that is none."""
    for entry in METHODS:
        if word in (entry.word, entry.alias) and not entry.is_function:
            return entry
    raise unknown("method", word, words(PAINTING + READING + DISTILLING + LEARNING))


def check(command: str, word: str) -> None:
    """Raise ``SfumatoError`` for a method that this command does not take, with those that it does."""
    entry = find(word)
    if entry.commands and command not in entry.commands:
        known = ", ".join(words((entry.group,), command=command))
        raise SfumatoError(f"{word} does not {command}; it is a method of {takers(word)}. Those of {command}: {known}")


def takers(word: str) -> str:
    """The commands that take a method, by its word; nothing for a word that is none."""
    taken = [c for c, groups in CHAINED.items() if word in words(groups, True, c == HEADS, c)]
    *others, last = ["show plan" if c == "plan" else c for c in taken] or [""]
    return "sfumato " * bool(last) + ", ".join(others) + " and " * bool(others) + last


def none_of(word: str, known: Sequence[str]) -> SfumatoError:
    """The error for a word that is none of the methods that a command takes: another's, or nobody's."""
    others = takers(word)
    if not others:
        return unknown("method", word, known)
    return SfumatoError(f"{word} is a method of {others}; those of this command: {', '.join(known)}")


def none_there(place: object, known: Sequence[str]) -> SfumatoError:
    """The error for a picture that is not there, in whose place a method may stand, of these or of other commands."""
    return none_of(str(place), known) if known and takers(str(place)) else nowhere(place, known)


def default(spec: str, presets: Callable[[Entry], Mapping[str, Any]] = lambda entry: entry.presets) -> Any:
    """A method as it is, or one of its presets: ``diff-seg``, ``diff-seg:coco``.

    ``SfumatoError`` that lists the presets for a word that is none, and for a method that needs more than a word.
    """
    word, colon, name = spec.partition(":")
    entry = find(word)
    if colon:
        return preset(entry, name, presets(entry))
    try:
        return entry.method()
    except TypeError:
        raise alone(word) from None


def alone(word: str) -> SfumatoError:
    """The error for a method that needs more than a word."""
    return SfumatoError(f"{word} needs options of its own; run it alone, see --help after its word")


def preset(entry: Entry, name: str, known: Mapping[str, Any]) -> Any:
    """One of a method's presets. ``SfumatoError`` that lists those that are known for a name that is none."""
    if name not in known:
        raise unknown(f"preset of {entry.word}", name, known or ("none",))
    return known[name]
