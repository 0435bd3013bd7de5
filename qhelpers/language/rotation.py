"""Hadamard matrices: rotations that spread an outlier over all channels.

x @ w.T is (x @ R) @ (w @ R).T for each R with R @ R.T = 1. In a Hadamard matrix all numbers are 1
or -1, so that each channel of x @ R holds as much of an outlier as any other.
"""

import torch

from qhelpers.checks import checked_integer


def sylvester(n):
    """Return the Hadamard matrix of order n, a power of two: each step doubles [[H, H], [H, -H]].

    Float64, (n, n), of 1 and -1, with H @ H.T = n times the identity.
    Raises TypeError or ValueError for another n. Source: Sylvester 1867.
    """
    checked_integer("n", n, 1, 2**14)
    if n & (n - 1):
        raise ValueError(f"n is {n}; it must be a power of two")
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.kron(step, matrix)
    return matrix


def paley(q):
    """Return a Hadamard matrix of order q + 1, where q is a prime with remainder 3 modulo 4.

    Inside, the number in row i and column j is 1 where j - i is a square modulo q, otherwise -1.
    Raises TypeError or ValueError for another q. Source: Paley 1933, construction I.
    """
    checked_integer("q", q, 3, 2**14)
    if q % 4 != 3 or any(q % factor == 0 for factor in range(3, int(q**0.5) + 1)):
        raise ValueError(f"q is {q}; it must be a prime number with remainder 3 modulo 4")
    numbers = torch.arange(q)
    square = torch.full((q,), -1.0, dtype=torch.float64)
    square[numbers**2 % q] = 1
    matrix = torch.ones(q + 1, q + 1, dtype=torch.float64)
    matrix[1:, 1:] = square[(numbers - numbers[:, None]) % q]
    matrix[1:, 0] = -1
    return matrix


def hadamard(n):
    """Return a Hadamard matrix of order n = 2**i * 12**j, such as 64, 256, 576 and 1536.

    The Kronecker product of Hadamard matrices is one of the product of their orders.
    Raises TypeError or ValueError for another n.
    """
    rest, matrix = checked_integer("n", n, 1, 2**14), torch.ones(1, 1, dtype=torch.float64)
    while rest % 12 == 0:
        rest, matrix = rest // 12, torch.kron(matrix, paley(11))
    if rest & (rest - 1):
        raise ValueError(f"n is {n}; it must be a product of twos and twelves")
    return torch.kron(sylvester(rest), matrix)


def signed_hadamard(n, seed=0):
    """Return a rotation, float64 of shape (n, n): a Hadamard matrix of rows with random signs.

    The signs keep inputs that resemble a row of the matrix from adding up in one channel.
    Divided by sqrt(n), so that R @ R.T is the identity. seed: of the signs.
    Raises TypeError or ValueError for n's that `hadamard` doesn't build.
    Source: Ashkboos et al. 2024 (QuaRot), section 3.
    """
    signs = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return signs[:, None] * hadamard(n) / n**0.5
