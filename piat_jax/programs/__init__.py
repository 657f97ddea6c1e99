"""What is done to a traced program before it is compiled, by the platform it is for.

Networks, attacks and methods are written once, in plain JAX. What a compiler needs to be fast is done here, to the
program they are traced to.
"""
