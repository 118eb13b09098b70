# The demo in a container: docker build -t d2go_fbnetv5 . && docker run --shm-size 2g -v "$PWD/output:/work/output" d2go_fbnetv5
FROM python:3.11-slim
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY . /source
RUN pip install --no-cache-dir /source && rm -r /source
WORKDIR /work
ENV OMP_NUM_THREADS=1
CMD ["d2go_fbnetv5.train_net", "--config-file", "search_digits.yaml", "--num-processes", "2", "--resume", \
     "OUTPUT_DIR", "output/demo"]
