import torch
from gloria_plugin_template.encoder import PatchEncoder


def test_a_region_sees_its_patch_and_nothing_else():
    encoder = PatchEncoder(width=5, patch_size=4)
    images = torch.randn(2, 1, 8, 14, requires_grad=True)
    features = encoder(images)
    assert features.grid == (2, 3)
    assert features.regions.shape == (2, 6, 5)
    torch.testing.assert_close(features.pooled, features.regions.sum(1) / 6)

    features.regions.unflatten(1, features.grid)[1, 1, 2].sum().backward()
    seen = images.grad.abs() > 0
    assert seen[1, 0, 4:8, 8:12].all()
    assert seen.sum() == 16


def test_the_recipe_makes_it_again(tmp_path):
    recipe = PatchEncoder(width=5, patch_size=4).recipe(tmp_path)
    assert recipe.name == "template_patches"
    again = PatchEncoder(**recipe.options)
    assert (again.pooled_dim, again.region_dim, again.patch_size) == (5, 5, 4)
