"""How alike two sets of features, or two sets of logits, are."""

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_finite


class LinearCKA:
    """Linear CKA of two sets of features of the same images, which may come in any batches.

    CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), with linear kernels. Only sums over images
    are kept (d x d numbers, in float64), so memory does not grow with images, any batching gives
    the same value, and shards merge exactly.

    The biased HSIC is ||X^T Y||_F^2 of the centred columns. With few images or many dimensions it
    tends to 1 whatever the features; the debiased one, a U-statistic, has expectation 0 for
    independent features and can be slightly negative.

    Source:
        Kornblith et al., arXiv 1905.00414, section 3 (biased); Song et al. 2012, equation 5, as in
        Nguyen et al., arXiv 2010.15327, equation 3 (debiased). Theirs averages HSIC over
        mini-batches; this one is exact.

    Example:
        >>> images = torch.arange(12.0).sin().view(6, 2)
        >>> cka = LinearCKA(debiased=True)
        >>> cka.update(images[:4], 2 * images[:4])
        >>> cka.update(images[4:], 2 * images[4:])
        >>> cka.compute()
        1.0
    """

    def __init__(self, debiased: bool = False) -> None:
        self.debiased = debiased
        self.images = 0
        self._dims: tuple[int, int] = (0, 0)
        # z = [x, y] is one image's features side by side, s = [|x|^2, |y|^2] its square norms
        self._sum_z = torch.zeros(0)
        self._sum_zz = torch.zeros(0)
        self._sum_sz = torch.zeros(0)
        self._sum_ss = torch.zeros(0)

    def update(self, x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_other"]) -> None:
        """Add images.

        Args:
            x: features of one kind.
            y: features of the other kind, of the same images in the same order.

        Raises:
            DataError: no images, NaN, or other dimensions than before.
        """
        check_finite(x, "x")
        check_finite(y, "y")
        dims = (x.shape[1], y.shape[1])
        if self.images and dims != self._dims:
            raise DataError(f"Found features of {dims} dimensions after {self._dims}.")
        z = torch.cat([x, y], dim=1).double()
        s = torch.stack([part.square().sum(dim=1) for part in z.split(dims, dim=1)], dim=1)
        self._add(dims, len(z), (z.sum(dim=0), z.T @ z, s.T @ z, s.T @ s))

    def merge(self, other: "LinearCKA") -> None:
        """Add the images of another accumulator, e.g. of another process.

        Raises:
            DataError: the other is of another kind or of other dimensions.
        """
        both = self.images and other.images
        if self.debiased != other.debiased or (both and self._dims != other._dims):
            raise DataError(
                f"Found CKA of {other._dims} dimensions, debiased={other.debiased}; "
                f"this one has {self._dims} and {self.debiased}."
            )
        if other.images:
            sums = (other._sum_z, other._sum_zz, other._sum_sz, other._sum_ss)
            self._add(other._dims, other.images, sums)

    def compute(self) -> float:
        """CKA of all images so far, in [0, 1] (a debiased one in [-1, 1]).

        Raises:
            DataError: too few images, or features as alike for every pair of images.
        """
        least = 4 if self.debiased else 2
        if self.images < least:
            raise DataError(f"CKA needs {least} images or more; found {self.images}.")
        hsic = self._debiased_hsic if self.debiased else self._biased_hsic
        xx, yy = hsic(0, 0), hsic(1, 1)
        for kind, value, name in ((0, xx, "x"), (1, yy, "y")):
            if value <= self._rounding(kind):
                raise DataError(
                    f"CKA is undefined: in {name} every pair of the {self.images} images is equally "
                    "alike, up to rounding."
                )
        return hsic(0, 1) / (xx * yy) ** 0.5

    def _add(self, dims: tuple[int, int], images: int, sums: tuple[Tensor, ...]) -> None:
        old = (self._sum_z, self._sum_zz, self._sum_sz, self._sum_ss)
        new = tuple(a + b for a, b in zip(old, sums, strict=True)) if self.images else sums
        self._sum_z, self._sum_zz, self._sum_sz, self._sum_ss = new
        self._dims = dims
        self.images += images

    def _moments(self, a: int, b: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of feature kinds a and b, and their cross product."""
        sums = self._sum_z.split(self._dims)
        blocks = self._sum_zz.split(self._dims, dim=0)[a].split(self._dims, dim=1)
        return sums[a], sums[b], blocks[b]

    def _square_norm(self, kind: int) -> Tensor:
        return self._sum_zz.diagonal().split(self._dims)[kind].sum()

    def _rounding(self, kind: int) -> float:
        """HSIC below which float64 sums of uncentred features hold no digit of it."""
        # the biased one squares a centred sum; the debiased one subtracts numbers already squared
        relative = 1e-14 if self.debiased else 1e-26
        return relative * float(self._square_norm(kind)) ** 2

    def _biased_hsic(self, a: int, b: int) -> float:
        sum_a, sum_b, cross = self._moments(a, b)
        return float((cross - torch.outer(sum_a, sum_b) / self.images).square().sum())

    def _debiased_hsic(self, a: int, b: int) -> float:
        """Song et al.'s estimator times n (n - 3), every sum over pairs taken in feature space.

        K~, L~ are the Gram matrices without their diagonals, which hold the square norms s:
        1'K~1 = |sum a|^2 - sum s_a, tr(K~L~) = |cross|^2 - sum s_a s_b, and 1'K~L~1 likewise.
        """
        n = self.images
        sum_a, sum_b, cross = self._moments(a, b)
        weighted = self._sum_sz.split(self._dims, dim=1)
        fourth = self._sum_ss[a, b]
        trace = cross.square().sum() - fourth
        total_a = sum_a @ sum_a - self._square_norm(a)
        total_b = sum_b @ sum_b - self._square_norm(b)
        rows = sum_a @ cross @ sum_b
        rows = rows - weighted[b][a] @ sum_b - weighted[a][b] @ sum_a + fourth
        return float(trace + total_a * total_b / ((n - 1) * (n - 2)) - 2 * rows / (n - 2))


def linear_cka(
    x: Float[Tensor, "batch d_model"], y: Float[Tensor, "batch d_other"], debiased: bool = False
) -> float:
    """Linear CKA of two sets of features of the same images; see `LinearCKA`.

    Args:
        x: features of one kind.
        y: features of the other kind.
        debiased: use the U-statistic; advised with fewer images than dimensions.

    Returns:
        CKA: 1 for features equal up to rotation, scale and offset.

    Raises:
        DataError: too few images, NaN, or features as alike for every pair of images.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> linear_cka(x, 5 - 3 * x)
        1.0
    """
    cka = LinearCKA(debiased)
    cka.update(x, y)
    return cka.compute()


def relative_change(
    changed: Float[Tensor, "batch *rest"], reference: Float[Tensor, "batch *rest"]
) -> Float[Tensor, " batch"]:
    """How far an image's features moved: ||changed - reference|| / ||reference||.

    Args:
        changed: features under an intervention.
        reference: features without it.

    Returns:
        The relative change of each image, in float64; 0 where nothing changed.

    Raises:
        DataError: no features, NaN, or a reference that is zero.

    Example:
        >>> relative_change(torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0, 4.0]])).tolist()
        [0.2]
    """
    changed, reference = _rows(changed, "changed"), _rows(reference, "reference")
    return (changed - reference).norm(dim=1) / _lengths(reference, "reference")


def cosine(
    a: Float[Tensor, "batch *rest"], b: Float[Tensor, "batch *rest"]
) -> Float[Tensor, " batch"]:
    """Cosine between the features of each image: a.b / (||a|| ||b||).

    Args:
        a: features of one kind.
        b: features of the other kind.

    Returns:
        The cosine of each image, in float64.

    Raises:
        DataError: no features, NaN, or features that are zero.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 0.0]])).tolist()
        [-1.0]
    """
    a, b = _rows(a, "a"), _rows(b, "b")
    return ((a / _lengths(a, "a")[:, None]) * (b / _lengths(b, "b")[:, None])).sum(dim=1)


def mean_cosine_to_others(features: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
    """Mean cosine between one image's features and those of every other image.

    Near 1: the features hardly depend on the image, as a register's hidden state or the summed
    update of register neurons. A few huge dimensions can bring that about alone: look after the
    norm as well (arXiv 2505.05892, section 4).

    Args:
        features: one vector per image.

    Returns:
        The mean over the other images, in float64.

    Raises:
        DataError: fewer than two images, NaN, or features that are zero.

    Example:
        >>> mean_cosine_to_others(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).tolist()
        [0.5, 0.5, 0.0]
    """
    rows = _rows(features, "features")
    if len(rows) < 2:
        raise DataError("Found the features of 1 image; give those of two images or more.")
    directions = rows / _lengths(rows, "features")[:, None]
    return (directions @ directions.sum(dim=0) - 1) / (len(rows) - 1)


def kl_of_logits(
    reference: Float[Tensor, "batch output"], changed: Float[Tensor, "batch output"]
) -> Float[Tensor, " batch"]:
    """Kullback-Leibler divergence of the class probabilities: sum_c p_c (ln p_c - ln q_c).

    Args:
        reference: logits p without the intervention.
        changed: logits q under it.

    Returns:
        Nats per image, in float64; 0 for equal probabilities.

    Raises:
        DataError: no logits, or NaN or infinite ones.

    Example:
        >>> kl_of_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[8.0, 9.0]])).tolist()
        [0.0]
    """
    p, q = _rows(reference, "reference").log_softmax(1), _rows(changed, "changed").log_softmax(1)
    return (p.exp() * (p - q)).sum(dim=1)


def _rows(features: Float[Tensor, "batch *rest"], name: str) -> Float[Tensor, "batch d_model"]:
    check_finite(features, name)
    return features.flatten(start_dim=1).double()


def _lengths(rows: Float[Tensor, "batch d_model"], name: str) -> Float[Tensor, " batch"]:
    lengths = rows.norm(dim=1)
    if (lengths == 0).any():
        image = int((lengths == 0).nonzero()[0])
        raise DataError(
            f"{name} of image {image} is zero, so its direction and scale are undefined."
        )
    return lengths
