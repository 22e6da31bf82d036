"""From settings to the scene that is simulated."""

from dataclasses import replace

from cxls.settings import BadSettings, SceneOptions, SimulationOptions
from sim_replay.artefacts import Artefacts
from sim_replay.background import Surroundings
from sim_replay.beam import Beam, Spectrum, gaussian, read_spectrum, top_hat
from sim_replay.cells import ready_crystal
from sim_replay.crystal import PROTEINASE_K_CELL, Crystal, read_cell, read_hkl
from sim_replay.crystfel import detector_from_geometry
from sim_replay.detector import CONDITIONS, Condition, Detector, eiger1_4m, eiger2_4m, plain_panel
from sim_replay.diffraction import Sample
from sim_replay.distractors import Distractors
from sim_replay.response import Response
from sim_replay.scene import Jitter, Scene
from sim_replay.structure import read_structure
from streamer.geometry_file import read_geometry

WATER_UNIT_M = 100e-6


def scene_of(options: SimulationOptions) -> Scene:
    """The scene that settings describe; raises ``BadSettings`` where they contradict each other.

    Also ValueError and OSError, of the files that they name.
    """
    if isinstance(options, SceneOptions):
        more = options
    else:
        more = SceneOptions(**{name: getattr(options, name) for name in SimulationOptions.model_fields})
    detector, condition = _detector_and_condition(more)
    return Scene(
        sample=Sample(
            _crystal(more), more.crystal_size, more.mosaicity, more.strain, offset_m=(more.crystal_offset, 0.0)
        ),
        condition=condition,
        detector=detector,
        surroundings=Surroundings(
            water_thickness_m=more.water_scale * WATER_UNIT_M,
            water_temperature_K=more.water_temperature,
            air_path_m=more.air,
            helium_path_m=more.helium,
            capillary_wall_m=more.capillary,
            beam_stop_radius_m=more.beam_stop,
            beam_stop_distance_m=more.beam_stop_distance,
            beam_stop_arm_width_m=more.beam_stop_arm,
            film_thickness_m=more.film,
            flat_photons_per_pixel=more.stray,
        ),
        distractors=Distractors(
            salt=more.salt,
            ice_ring=more.ice,
            lipid_ring=more.lipid,
            polymer_ring=more.polymer,
            no_beam=more.no_beam,
        ),
        jitter=Jitter(
            more.jitter_pulse_energy,
            more.jitter_thickness,
            more.jitter_center,
            more.jitter_energy,
            more.jitter_distance,
            more.jitter_crystal,
        ),
        response=Response(
            more.response, more.pulses_per_frame, more.pixel_threshold, more.charge_sigma, more.retrigger_ratio
        ),
        artefacts=Artefacts(
            dead_pixels=more.dead_pixels,
            hot_pixels=more.hot_pixels,
            flickering_pixels=more.flicker_pixels,
            cosmics=more.cosmic_rate,
            dark_counts=more.dark_counts,
            edge_glow_share=more.edge_glow,
        ),
        hit_fraction=more.hit_fraction,
        crystals=more.crystals,
        fixed_orientation=_numbers(more.orientation) if more.orientation else None,
    )


def _detector_and_condition(options: SceneOptions) -> tuple[Detector, Condition]:
    detectors = {
        "eiger2-4m": eiger2_4m(options.dtype),
        "eiger1-4m": eiger1_4m(options.dtype),
        "paper": plain_panel(dtype=options.dtype),
    }
    detector = detectors[options.detector]
    given = options.condition is not None
    energy, length = options.energy, options.camera_length
    if given and (energy is not None or length is not None):
        raise BadSettings("--condition fixes camera length and photon energy; give it or --camera-length and --energy")
    center: tuple[float | None, float | None] = (None, None)
    if options.geometry is not None:
        seen = detector_from_geometry(read_geometry(options.geometry), options.dtype)
        detector, center = seen.detector, (seen.beam_center_x_px, seen.beam_center_y_px)
        energy = seen.photon_energy_eV if energy is None and not given else energy
        length = seen.camera_length_m if length is None and not given else length
    elif (energy is None) != (length is None):
        missing = "--energy" if energy is None else "--camera-length"
        raise BadSettings(f"{missing} is missing; give --camera-length and --energy together")
    paper = CONDITIONS[options.condition or 5]
    return replace(detector, point_spread_px=options.point_spread), Condition(
        paper.photon_energy_eV if energy is None else energy,
        paper.camera_length_m if length is None else length,
        options.flux,
        *center,
        beam=Beam(
            spectrum=_spectrum(options),
            radius_m=options.beam_radius,
            profile="uniform" if options.crystfel_fluence else options.beam_profile,
            divergence_rad=options.divergence,
            polarisation_fraction=options.polarisation,
            polarisation_deg=options.polarisation_angle,
        ),
    )


def _spectrum(options: SceneOptions) -> Spectrum:
    if options.spectrum_file is not None:
        return read_spectrum(options.spectrum_file)
    return gaussian(options.bandwidth) if options.spectrum == "gaussian" else top_hat(options.bandwidth)


def _crystal(options: SceneOptions) -> Crystal:
    if options.pdb is not None and options.hkl is not None:
        raise BadSettings("--pdb and --hkl are both given; the crystal comes from one of them")
    if options.cell is not None and options.hkl is None:
        raise BadSettings("--cell is the cell of --hkl; give that too")
    if options.pdb is not None:
        return read_structure(options.pdb, options.d_min or 1.8, bulk_solvent=options.bulk_solvent)
    if options.hkl is not None:
        return read_hkl(options.hkl, PROTEINASE_K_CELL if options.cell is None else read_cell(options.cell))
    return ready_crystal(options.crystal, options.crystal_seed, options.d_min)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.replace(",", " ").split())
    except ValueError:
        raise BadSettings(f"--orientation is '{text}'; give 9 numbers, row by row") from None
