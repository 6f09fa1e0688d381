"""Figure 7: Inception-ResNet-V2 on ImageNet in below 2,500 updates, by a raised momentum and a growing batch.

    python -m experiments.figure7 --preset=imagenet --plans --workdir=runs/figure7
    python -m experiments.figure7 --preset=imagenet --rehearse --workdir=runs/figure7
    python -m experiments.figure7 --preset=imagenet --seeds=2 --nocontrols --workdir=runs/figure7
    python -m experiments.figure7 --preset=tiny_imagenet --seeds=3 --workdir=runs/tiny_imagenet_figure7

The first command prints the updates of the plans beside the paper's words. The second times their first microbatches on
random images, and predicts what they would take here. The third trains them, on as many accelerators as there are, and
shows the test accuracy against epochs and against updates. The last one does so on a small copy, ten classes of Tiny
ImageNet, with controls. docs/imagenet.md says how to prepare both data sets.
"""

from experiments.harness import imagenet, imagenet_figures

if __name__ == "__main__":
    imagenet_figures.run("figure7", imagenet.FIGURE7, imagenet.raised_momentum)
