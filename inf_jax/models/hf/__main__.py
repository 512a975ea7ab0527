from inf_jax.models.hf.weights import main

main()
