"""Places on the globe as unit vectors, in which there is no edge at 180 degrees and no shrinking at poles."""

import numpy as np

from jaxllm.errors import UserError

EARTH_KM = 6371.0088  # mean radius


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return places as points on a sphere of radius 1, float64 [..., 3].

    Args:
      latitude: in degrees, -90 to 90.
      longitude: in degrees; 190 is -170.

    Raises:
      UserError: numbers that are none, or latitudes beyond the poles.

    Examples:
      >>> unit_vectors([0, 0, 90], [0, 90, 12]).round(6).tolist()
      [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    degrees = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    if not all(np.isfinite(x).all() for x in degrees) or (np.abs(degrees[0]) > 90).any():
        raise UserError(
            "a place has a latitude beyond -90 to 90 degrees, or a coordinate that is no number; latitudes "
            "come first"
        )
    lat, lng = map(np.radians, degrees)
    return np.stack([np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat)], axis=-1)


def degrees(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (latitude, longitude) of vectors of any length but 0, such as a probe's predictions.

    Examples:
      >>> [x.round(6).tolist() for x in degrees(2 * unit_vectors([10.0, -60.0], [170.0, -20.0]))]
      [[10.0, -60.0], [170.0, -20.0]]
    """
    x, y, z = np.moveaxis(np.asarray(vectors, np.float64), -1, 0)
    return np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))


def great_circle_km(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the shortest way over the globe between vectors' directions, in km; broadcasts.

    By arctan2, which is exact for places that are near each other or opposite; arccos is not.

    Examples:
      >>> paris, london = unit_vectors(48.8567, 2.3522), unit_vectors(51.5072, -0.1275)
      >>> float(great_circle_km(paris, london).round())
      344.0
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    across = np.linalg.norm(np.cross(one, other), axis=-1)
    return EARTH_KM * np.arctan2(across, np.sum(one * other, axis=-1))
