"""`python -m grasp_lora` is `grasp-lora`."""

from .cli import main

if __name__ == "__main__":
    main()
