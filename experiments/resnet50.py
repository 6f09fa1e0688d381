"""Section 5.4: ResNet-50 on ImageNet, whose batch doubles to 16,384 where the learning rate would first decay.

    python -m experiments.resnet50 --preset=imagenet --plans --workdir=runs/resnet50
    python -m experiments.resnet50 --preset=imagenet --rehearse --workdir=runs/resnet50
    python -m experiments.resnet50 --preset=imagenet --seeds=1 --nocontrols --workdir=runs/resnet50

The first command prints the updates of the plans. The second times their first microbatches on random images, and
predicts what they would take here. The third trains them, on as many accelerators as there are. The paper reaches
76.1 % in less than 30 minutes on a TPU pod. docs/imagenet.md says how to prepare the images.
"""

from experiments.harness import imagenet, imagenet_figures

if __name__ == "__main__":
    imagenet_figures.run("resnet50", imagenet.RESNET50, imagenet.decayed_and_grown)
