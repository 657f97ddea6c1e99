import subprocess
import sys

from piat_jax.core.cores import count_cores

CODE = """
import sys
import jax
from piat_jax.core.cores import use_one_device_a_core
if "given" in sys.argv:
    jax.config.update("jax_num_cpu_devices", 3)
if "begun" in sys.argv:
    jax.devices()
use_one_device_a_core()
print(len(jax.devices("cpu")))
"""


def devices(*arguments):
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_every_core_is_a_device_unless_told_otherwise():
    assert devices() == count_cores()
    assert devices("given") == 3
    assert devices("begun") == 1
