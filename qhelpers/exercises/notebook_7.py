"""What makes the answers to the exercises of notebook 7 right, with a hint for each mistake."""

import torch

from qhelpers.exercises.answers import mistake, near, real, reals, require, rounded
from qhelpers.ptq.gptq import gptq
from qhelpers.ptq.rounding import output_error


def two_weights(aim, codes):
    aim, codes = real(aim, "aim"), reals(codes, 2)
    mistake(near(aim, 0.84), "These inputs vary against each other, so H_12 is negative.")
    mistake(near(aim, 0.24), "That is what is handed over. Add it to where the weight was.")
    mistake(near(aim, -0.24), "That is what is handed over. Add it to where the weight was.")
    mistake(near(aim, 0.04), "What is lost is 0.3, the distance of the first weight from 0.")
    mistake(near(aim, 0.6), "The second weight makes up for the first: it no longer aims at 0.6.")
    require(rounded(aim, 0.36), "The second aims at w_2 - H_12 / H_22 e_1. What is e_1?")
    mistake(near(codes, (0, 1)), "The aim is right. Which level is nearest to it?")
    require(near(codes, (0, 0)), "The aim is right. The first weight goes to its nearest level.")


def handed_over(hand_over):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    H = random_moment(5, generator)
    error = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    for j in (0, 2):
        given = weight.clone()
        answer = torch.from_numpy(reals(hand_over(weight, H, j, error)))
        require(torch.equal(weight, given), "Your function changes the weight it is given.")
        require(answer.shape == (3, 5), f"It returns the shape {tuple(answer.shape)}, not (3, 5).")
        moved_rightly(answer - weight, H, j, error)


def moved_rightly(moved, H, j, error):
    """Raise Wrong unless the columns after j make up for the error, and no other has moved."""
    rest = slice(j + 1, None)

    def by(share):
        return same(moved[:, rest], -torch.outer(error, share))

    share = torch.linalg.solve(H[rest, rest], H[rest, j])
    inverse = torch.linalg.inv(H)
    mistake(same(moved, torch.zeros_like(moved)), "It returns the weight as it was.")
    mistake(by(-share), "The columns move the wrong way: they make up for the error.")
    mistake(by(H[rest, j] / H[j, j]) or by(H[rest, j] / H.diagonal()[rest]),
            "Each column makes up for all, as if it were the only one that is left.")  # fmt: skip
    mistake(by(H[rest, j]), "Divide: solve for the part H_RR of H.")
    mistake(by(H[rest, rest] @ H[rest, j]), "Multiply by the inverse of H_RR.")
    mistake(j > 0 and by(-inverse[rest, j] / inverse[j, j]),
            "It is right for the first column only: the columns before j are rounded and can't "
            "move, so leave them out before you invert.")  # fmt: skip
    require(by(share), f"For j = {j} the columns after j are not right.")
    still = moved[:, : j + 1]
    require(same(still, torch.zeros_like(still)),
            "The columns after j are right. The others should stay as they are.")  # fmt: skip


def shares(shares_of):
    H = random_moment(6, torch.Generator().manual_seed(1))
    answer = torch.from_numpy(reals(shares_of(H)))
    require(answer.shape == (6, 6), f"It returns the shape {tuple(answer.shape)}, not (6, 6).")
    after = answer.triu(1)
    right = torch.zeros_like(H)
    for j in range(5):
        right[j, j + 1 :] = torch.linalg.solve(H[j + 1 :, j + 1 :], H[j + 1 :, j])
    inverse = torch.linalg.inv(H)
    upper, of_H = (torch.linalg.cholesky(matrix, upper=True) for matrix in (inverse, H))
    for factor, hint in [
        (-of_H / of_H.diagonal()[:, None], "This is the factor of H. Factorise its inverse."),
        (of_H / of_H.diagonal()[:, None], "This is the factor of H. Factorise its inverse."),
        (-right, "The shares have the wrong sign."),
        (upper, "Divide each row by its number on the diagonal."),
        (-upper, "Divide each row by its number on the diagonal."),
        (upper / upper.diagonal(), "Divide each row, not each column: diagonal()[:, None]."),
        (-upper / upper.diagonal(), "Divide each row, not each column: diagonal()[:, None]."),
        (-inverse / inverse.diagonal()[:, None], "Row 0 is right. The others still count the rows "
         "before them, which are rounded: factorise the inverse."),
    ]:  # fmt: skip
        mistake(same(after, factor.triu(1)), hint)
    mistake(
        same(after, torch.zeros_like(H)),
        "Nothing stands after the diagonal: take the upper factor.",
    )
    require(same(after, right), "Compare row 0 with what solve gives for the first column.")


def bad_images(images, net, data):
    require(isinstance(images, torch.Tensor), "It should be a tensor of images.")
    shape = tuple(images.shape)
    require(shape[1:] == (1, 28, 28), f"The images have the shape {shape}, not (N, 1, 28, 28).")
    require(len(images) >= 100, f"These are {len(images)} images; take 100 or more.")
    different = len(images.unique(dim=0))
    require(different >= 100, f"Only {different} of them are different; take 100 or more.")
    weight = net.linear1.weight.detach().double()
    scale = weight.abs().amax(dim=1, keepdim=True) / 7.5
    others = moment_of(data.test_images)
    codes = gptq(weight, moment_of(images), scale, 4), (weight / scale).round().clamp(-8, 7)
    yours, nearest = (output_error(weight, each * scale, others).mean().item() for each in codes)
    require(yours > nearest, f"On test images GPTQ has {yours:.4f}, nearest {nearest:.4f}. Which "
            "images say less about the test images than these?")  # fmt: skip


def same(answer, wanted):
    return torch.allclose(answer, wanted, rtol=1e-3, atol=1e-6)


def random_moment(size, generator):
    inputs = torch.randn(50, size, generator=generator, dtype=torch.float64)
    inputs = inputs + inputs.mean(dim=1, keepdim=True) * 2 + torch.linspace(1, 2, size)
    return inputs.T @ inputs / len(inputs)


def moment_of(images):
    pixels = images.reshape(len(images), -1).double()
    centred = pixels - pixels.mean(dim=0)
    return centred.T @ centred / len(centred)


CHECKS = {"7.1": two_weights, "7.2": handed_over, "7.3": shares, "7.4": bad_images}
