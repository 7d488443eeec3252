"""Pictures changed through their latents, without words.

`morph.write_morph`, `vary.vary`, `blend.blend`, `directions.learn` and `Direction.apply`, `transfer.transfer`: what the
commands of these names call. Pictures become latents by `sources.latents_of`, and `VAE.write_image` writes what was
edited.
"""
