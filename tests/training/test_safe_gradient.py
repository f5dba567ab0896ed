import pytest
import torch

from larf_curate.training.safe_gradient import turn


def weights_with(gradient):
    """Two weights that share a gradient of 7 numbers."""
    weights = [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    weights[0].grad, weights[1].grad = gradient[:4].reshape(2, 2).clone(), gradient[4:].clone()
    return weights


def gradient_of(weights):
    return torch.cat([weight.grad.flatten() for weight in weights])


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.3, 0.9])
def test_the_cosine_is_reached_and_what_is_across_stays(cosine):
    torch.manual_seed(0)
    for _ in range(20):
        gradient, way = torch.randn(2, 7, dtype=torch.float64)
        way /= way.norm()
        weights = weights_with(gradient)
        before = turn(weights, [way[:4].reshape(2, 2), way[4:]], cosine)
        found = gradient_of(weights)
        assert before == pytest.approx(torch.cosine_similarity(gradient, way, dim=0).item())
        if before >= cosine:
            assert torch.equal(found, gradient)
            continue
        assert torch.cosine_similarity(found, way, dim=0).item() == pytest.approx(cosine)
        across = gradient - (gradient @ way) * way
        torch.testing.assert_close(found - (found @ way) * way, across)


def test_no_conflict_and_no_direction_change_nothing():
    gradient = torch.arange(7.0, dtype=torch.float64)
    weights = weights_with(gradient)
    assert turn(weights, [torch.zeros(2, 2), torch.zeros(3)], 0.3) == 0
    assert torch.equal(gradient_of(weights), gradient)


def test_a_weight_without_a_gradient_gets_one():
    weights = weights_with(torch.arange(7.0, dtype=torch.float64))
    weights[1].grad = None
    way = torch.full((7,), 7**-0.5, dtype=torch.float64)
    turn(weights, [way[:4].reshape(2, 2), way[4:]], 0.95)
    assert torch.cosine_similarity(gradient_of(weights), way, dim=0).item() == pytest.approx(0.95)


@pytest.mark.parametrize("cosine", [0.2, 0.9])
@pytest.mark.parametrize(
    ("dtype", "before", "accuracy"), [(torch.float32, -0.9999, 1e-5), (torch.bfloat16, -0.9, 1e-2)]
)
def test_the_cosine_is_reached_from_nearly_the_opposite(dtype, before, accuracy, cosine):
    torch.manual_seed(0)
    way, across = torch.linalg.qr(torch.randn(20_000, 2, dtype=torch.float64))[0].T
    gradient, way = ((before * way + (1 - before**2) ** 0.5 * across).to(dtype), way.to(dtype))
    weight = torch.zeros_like(gradient)
    weight.grad = gradient.clone()
    assert turn([weight], [way], cosine).item() == pytest.approx(before, abs=3e-4 if accuracy > 1e-3 else 1e-6)
    found = weight.grad.double()
    assert torch.cosine_similarity(found, way.double(), dim=0).item() == pytest.approx(cosine, abs=accuracy)
    left = found - (found @ way.double()) * way.double()
    assert (left.norm() / across.norm()).item() == pytest.approx((1 - before**2) ** 0.5, rel=accuracy)


@pytest.mark.parametrize("gradient", [None, torch.zeros(3), torch.full((3,), 1e-30)])
def test_a_gradient_without_a_norm_is_left_as_it_is(gradient):
    weight = torch.zeros(3)
    weight.grad = None if gradient is None else gradient.clone()
    assert turn([weight], [torch.tensor([0.6, 0.0, 0.8])], 0.3) == 0
    assert weight.grad is None if gradient is None else torch.equal(weight.grad, gradient)
